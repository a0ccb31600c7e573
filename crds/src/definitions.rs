//! The CustomResourceDefinitions.

use crate::{Broker, Queue, Worker, Workflow};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;
use std::collections::BTreeMap;

/// All definitions, in reading order.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    [Broker::crd(), Queue::crd(), Worker::crd(), Workflow::crd()].into_iter().map(null_is_absent).collect()
}

/// Without `nullable`, the API server drops a null instead of keeping it: `replicas: null` gives scaling back, where a kept
/// null would make the scale subresource refuse the object, and templates reach the Deployment as if it had not been there.
fn null_is_absent(mut definition: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut definition.spec.versions {
        if let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            drop_nullable(schema);
        }
    }
    definition
}

fn drop_nullable(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    schema.properties.iter_mut().flat_map(BTreeMap::values_mut).for_each(drop_nullable);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        drop_nullable(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        drop_nullable(values);
    }
}

/// A definition as the YAML that stands in the chart.
///
/// # Panics
/// Never: a definition made here can be written as YAML.
pub fn yaml(definition: &CustomResourceDefinition) -> String {
    serde_yaml::to_string(definition).expect("a definition can be written as YAML")
}
