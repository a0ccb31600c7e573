//! Enqueueing as a producer in the cluster would: through the broker's HTTP API.

use crate::{World, wait::eventually};
use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Secret, Service};
use longshore_crds::Queue;
use longshore_drivers::{
    Driver, JobId, NewJob, Payload, QueueName,
    http::client::{HttpConfig, HttpDriver, TokenSource},
};
use serde_json::Value;
use std::time::Duration;

impl World {
    /// A driver for the embedded Broker `default`. The address of its Service is reachable from the node, so this works
    /// on the local cluster only.
    ///
    /// # Errors
    /// When the broker isn't there yet.
    pub async fn driver(&self) -> Result<HttpDriver> {
        let secret: Secret = self.get("default-broker-token").await?;
        let token = secret.data.as_ref().and_then(|data| data.get("current")).context("no token")?;
        let service: Service = self.get("default-broker").await?;
        let address = service.spec.and_then(|spec| spec.cluster_ip).context("no address")?;
        let token = String::from_utf8(token.0.clone())?;
        Ok(HttpDriver::new(HttpConfig::new(&format!("http://{address}:7400"), TokenSource::fixed(&token))?))
    }

    /// The name of a Queue on its broker, once it was declared.
    ///
    /// # Errors
    /// When it isn't declared in time.
    pub async fn physical(&self, queue: &str) -> Result<QueueName> {
        eventually(&format!("Queue {queue} to be declared"), Duration::from_secs(90), || async {
            let queue: Queue = self.get(queue).await?;
            let status = queue.status.clone().unwrap_or_default();
            let effective = status.effective.with_context(|| format!("{:?}", status.conditions))?;
            Ok(effective.physical_name.parse()?)
        })
        .await
    }

    /// Enqueues `jobs`, pairs of type and payload, and gives their ids. As a producer should, it names the jobs itself and
    /// repeats what it doesn't know the outcome of.
    ///
    /// # Errors
    /// When one is refused, or when the broker stays away for a minute.
    pub async fn enqueue(&self, queue: &str, jobs: Vec<(&str, Value)>) -> Result<Vec<String>> {
        let (name, driver) = (self.physical(queue).await?, self.driver().await?);
        let jobs: Vec<_> = jobs.into_iter().map(|(kind, payload)| new_job(kind, &payload)).collect();
        let ids = jobs.iter().filter_map(|job| job.id.as_ref().map(ToString::to_string)).collect();
        for chunk in jobs.chunks(500) {
            eventually("the broker to take jobs", Duration::from_secs(60), || async {
                let answers = driver.enqueue(&name, chunk.to_vec()).await?;
                answers.into_iter().try_for_each(|answer| answer.map(drop))?;
                Ok(())
            })
            .await?;
        }
        Ok(ids)
    }
}

/// A job that names itself.
pub fn new_job(kind: &str, payload: &Value) -> NewJob {
    NewJob::new(kind, Payload::json(payload.to_string())).with_id(JobId::generate())
}
