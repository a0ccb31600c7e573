//! Bodies: bounded one by one and all together.

use super::{Api, ApiLimits, Group};
use crate::{Error, ErrorKind, Result};
use axum::{
    body::{Body, HttpBody},
    extract::{FromRequest, Request},
};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What is still read of a body that was refused, so that its sender hears the answer instead of a reset.
const DRAIN: usize = 1024 * 1024;

/// Bytes of bodies that may be here at once: a permit per byte.
#[derive(Debug)]
pub(super) struct Budgets {
    shared: Arc<Semaphore>,
    reserved: Arc<Semaphore>,
}

impl Budgets {
    pub(super) fn new(limits: &ApiLimits) -> Self {
        let shared = Arc::new(Semaphore::new(limits.bodies));
        let reserved = Arc::new(Semaphore::new(limits.reserved));
        Self { shared, reserved }
    }

    /// A share of nothing yet. A crowd of producers must not keep leases from being extended and jobs from being
    /// settled, so they have only one of the budgets.
    fn share(&self, group: Group) -> Share {
        let budgets = match group {
            Group::Producer => vec![self.shared.clone()],
            Group::Worker | Group::Inspection | Group::Operator => {
                vec![self.reserved.clone(), self.shared.clone()]
            }
        };
        Share { budgets, held: Vec::new() }
    }
}

/// The bytes of one body.
#[derive(Debug)]
struct Share {
    budgets: Vec<Arc<Semaphore>>,
    held: Vec<OwnedSemaphorePermit>,
}

impl Share {
    /// Takes `bytes` more from the first budget that has them.
    fn grow(&mut self, bytes: usize) -> Result<()> {
        let crowded = || Error::unavailable("too many bytes are on their way in; try again");
        let bytes = u32::try_from(bytes).map_err(|_| crowded())?;
        let mut taken =
            self.budgets.iter().filter_map(|budget| budget.clone().try_acquire_many_owned(bytes).ok());
        let taken = taken.next().ok_or_else(crowded)?;
        match self.held.iter_mut().find(|held| Arc::ptr_eq(held.semaphore(), taken.semaphore())) {
            Some(held) => held.merge(taken),
            None => self.held.push(taken),
        }
        Ok(())
    }
}

/// A JSON body. Its share of the budget is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Bounded<T> {
    pub(super) value: T,
    _share: Share,
}

impl<T> Bounded<T> {
    /// The value alone; its share goes back at once.
    pub(super) fn into_value(self) -> T {
        self.value
    }
}

impl<T: DeserializeOwned> FromRequest<Api> for Bounded<T> {
    type Rejection = Error;

    async fn from_request(request: Request, api: &Api) -> Result<Self> {
        let group = request.extensions().get().copied().unwrap_or(Group::Producer);
        let mut body = request.into_body();
        let shared = &api.shared;
        match read(&mut body, shared.limits.body, shared.bodies.share(group)).await {
            Ok((bytes, share)) => {
                let value = serde_json::from_slice(&bytes).map_err(|error| unreadable("the body", &error))?;
                Ok(Self { value, _share: share })
            }
            Err(error) => {
                drain(body).await;
                Err(error)
            }
        }
    }
}

async fn read(body: &mut Body, limit: usize, mut share: Share) -> Result<(Vec<u8>, Share)> {
    let too_large = || Error::new(ErrorKind::TooLarge, format!("a body may take {limit} bytes"));
    let announced = HttpBody::size_hint(body).lower();
    if usize::try_from(announced).map_or(true, |bytes| bytes > limit) {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Error::invalid("the body ended early"))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(too_large());
        }
        // Taken as bytes arrive: announcing a big body and never sending it costs nobody anything.
        share.grow(data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, share))
}

/// Reads a little more and forgets it.
pub(super) async fn drain(mut body: Body) {
    let mut left = DRAIN;
    while let Some(Ok(frame)) = body.frame().await {
        let bytes = frame.data_ref().map_or(0, bytes::Bytes::len);
        if bytes > left {
            return;
        }
        left -= bytes;
    }
}

/// Says where the JSON is wrong without repeating what stands there: it may be a payload.
pub(super) fn unreadable(what: &str, error: &serde_json::Error) -> Error {
    let text = error.to_string();
    let text = match (text.find('"'), text.rfind('"')) {
        (Some(first), Some(last)) if first < last => format!("{}…{}", &text[..first], &text[last + 1..]),
        _ => text,
    };
    Error::invalid(format!("{what} can't be understood: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NewJob;

    fn budgets(bodies: usize, reserved: usize) -> Budgets {
        Budgets::new(&ApiLimits { bodies, reserved, ..ApiLimits::default() })
    }

    #[tokio::test]
    async fn a_body_over_its_limit_is_refused() {
        let budgets = budgets(1000, 0);
        let share = || budgets.share(Group::Worker);
        let refused = read(&mut Body::from(vec![b'x'; 101]), 100, share()).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::TooLarge);
        let chunks = futures::stream::iter((0..20).map(|_| Ok::<_, std::io::Error>("12345678")));
        let refused = read(&mut Body::from_stream(chunks), 100, share()).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::TooLarge);
        assert_eq!(budgets.shared.available_permits(), 1000);
    }

    #[tokio::test]
    async fn bodies_share_one_budget() {
        let budgets = budgets(150, 0);
        let read = async || read(&mut Body::from(vec![b'x'; 100]), 100, budgets.share(Group::Worker)).await;
        let (_, share) = read().await.unwrap();
        assert_eq!(read().await.unwrap_err().kind, ErrorKind::Unavailable);
        drop(share);
        assert!(read().await.is_ok());
        assert_eq!(budgets.shared.available_permits(), 150);
    }

    #[test]
    fn producers_leave_the_reserve_to_others() {
        let budgets = budgets(100, 50);
        let (mut producer, mut worker) = (budgets.share(Group::Producer), budgets.share(Group::Worker));
        worker.grow(30).unwrap();
        producer.grow(100).unwrap();
        assert!(producer.grow(1).is_err() && worker.grow(21).is_err());
        worker.grow(20).unwrap();
        drop(producer);
        worker.grow(100).unwrap();
        drop(worker);
        assert_eq!([&budgets.shared, &budgets.reserved].map(|budget| budget.available_permits()), [100, 50]);
    }

    #[test]
    fn what_is_wrong_is_told_without_what_stands_there() {
        let wrong = serde_json::from_str::<NewJob>(r#"{"type":"a","payload":"se\"cret"}"#);
        let text = unreadable("a job", &wrong.unwrap_err()).message;
        assert!(!text.contains("cret") && text.contains("line 1"), "{text}");
    }
}
