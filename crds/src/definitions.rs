//! The CustomResourceDefinitions.

use crate::{Broker, Queue, Worker, Workflow};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// All definitions, in reading order.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    vec![Broker::crd(), Queue::crd(), Worker::crd(), Workflow::crd()]
}

/// A definition as the YAML that stands in the chart.
///
/// # Panics
/// Never: a definition made here can be written as YAML.
pub fn yaml(definition: &CustomResourceDefinition) -> String {
    serde_yaml::to_string(definition).expect("a definition can be written as YAML")
}
