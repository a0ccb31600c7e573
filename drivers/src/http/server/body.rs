//! Bodies: bounded one by one and all together.

use super::Api;
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

/// A JSON body. Its share of the budget is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Bounded<T> {
    pub(super) value: T,
    _share: OwnedSemaphorePermit,
}

impl<T: DeserializeOwned> FromRequest<Api> for Bounded<T> {
    type Rejection = Error;

    async fn from_request(request: Request, api: &Api) -> Result<Self> {
        let mut body = request.into_body();
        let shared = &api.shared;
        match read(&mut body, shared.limits.body, &shared.bodies).await {
            Ok((bytes, share)) => {
                let value =
                    serde_json::from_slice(&bytes).map_err(|error| Error::invalid(describe(&error)))?;
                Ok(Self { value, _share: share })
            }
            Err(error) => {
                drain(body).await;
                Err(error)
            }
        }
    }
}

async fn read(
    body: &mut Body,
    limit: usize,
    budget: &Arc<Semaphore>,
) -> Result<(Vec<u8>, OwnedSemaphorePermit)> {
    let too_large = || Error::new(ErrorKind::TooLarge, format!("a body may take {limit} bytes"));
    let announced = HttpBody::size_hint(body).lower();
    if usize::try_from(announced).map_or(true, |bytes| bytes > limit) {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let mut share = share_of(budget, 0)?;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Error::invalid("the body ended early"))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(too_large());
        }
        // Taken as bytes arrive: announcing a big body and never sending it costs nobody anything.
        share.merge(share_of(budget, data.len())?);
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, share))
}

fn share_of(budget: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit> {
    u32::try_from(bytes)
        .ok()
        .and_then(|bytes| budget.clone().try_acquire_many_owned(bytes).ok())
        .ok_or_else(|| Error::unavailable("too many bytes are on their way in; try again"))
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
fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = match (text.find('"'), text.rfind('"')) {
        (Some(first), Some(last)) if first < last => format!("{}…{}", &text[..first], &text[last + 1..]),
        _ => text,
    };
    format!("the body is no such request: {text}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::wire::EnqueueBody;

    #[tokio::test]
    async fn a_body_over_its_limit_is_refused() {
        let budget = Arc::new(Semaphore::new(1000));
        let refused = read(&mut Body::from(vec![b'x'; 101]), 100, &budget).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::TooLarge);
        let chunks = futures::stream::iter((0..20).map(|_| Ok::<_, std::io::Error>("12345678")));
        let refused = read(&mut Body::from_stream(chunks), 100, &budget).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::TooLarge);
        assert_eq!(budget.available_permits(), 1000);
    }

    #[tokio::test]
    async fn bodies_share_one_budget() {
        let budget = Arc::new(Semaphore::new(150));
        let (_, share) = read(&mut Body::from(vec![b'x'; 100]), 100, &budget).await.unwrap();
        let refused = read(&mut Body::from(vec![b'x'; 100]), 100, &budget).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Unavailable);
        drop(share);
        assert!(read(&mut Body::from(vec![b'x'; 100]), 100, &budget).await.is_ok());
        assert_eq!(budget.available_permits(), 150);
    }

    #[test]
    fn what_is_wrong_is_told_without_what_stands_there() {
        let wrong = serde_json::from_str::<EnqueueBody>(r#"{"jobs":[{"type":"a","payload":"se\"cret"}]}"#);
        let text = describe(&wrong.unwrap_err());
        assert!(!text.contains("cret") && text.contains("line 1"), "{text}");
    }
}
