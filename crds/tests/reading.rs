//! One object must not keep the others from being read: a list is parsed as one text.

use kube::core::{ObjectList, WatchEvent};
use longshore_crds::{StepPhase, Worker, Workflow, WorkflowPhase};
use serde_json::json;

fn nested(depth: usize) -> String {
    format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth))
}

fn workflow(name: &str, payload: &str) -> String {
    format!(
        r#"{{"apiVersion":"longshore.dev/v1alpha1","kind":"Workflow","metadata":{{"name":"{name}"}},
        "spec":{{"queueRef":{{"name":"q"}},"steps":[{{"name":"one","job":{{"type":"t","payload":{payload}}}}}]}},
        "status":{{"checkpoint":{{"version":1,"data":{payload}}}}}}}"#
    )
}

#[test]
fn a_payload_of_any_depth_leaves_the_other_workflows_of_a_list_intact() {
    for depth in [200, 20_000] {
        let items = [workflow("a", r#"{"x":[1]}"#), workflow("deep", &nested(depth)), workflow("z", "[2]")];
        let list = format!(
            r#"{{"kind":"WorkflowList","apiVersion":"longshore.dev/v1alpha1","metadata":{{"resourceVersion":"7"}},"items":[{}]}}"#,
            items.join(",")
        );
        let list: ObjectList<Workflow> = serde_json::from_str(&list).unwrap();
        let payload = |at: usize| list.items[at].spec.steps[0].job.as_ref().unwrap().payload.clone().unwrap();
        assert_eq!((&*payload(0), payload(0).is_too_deep()), (&json!({ "x": [1] }), false));
        assert!(payload(1).is_too_deep());
        assert_eq!(*payload(2), json!([2]));
        let status = list.items[1].status.as_ref().unwrap();
        assert!(status.checkpoint.as_ref().unwrap().data.is_too_deep());
    }
}

#[test]
fn a_payload_of_any_depth_does_not_break_a_watch() {
    let event = format!(r#"{{"type":"ADDED","object":{}}}"#, workflow("deep", &nested(200)));
    let event: WatchEvent<Workflow> = serde_json::from_str(&event).unwrap();
    assert!(
        matches!(event, WatchEvent::Added(workflow) if workflow.metadata.name.as_deref() == Some("deep"))
    );
}

#[test]
fn a_template_of_any_depth_can_be_read() {
    let worker = format!(
        r#"{{"apiVersion":"longshore.dev/v1alpha1","kind":"Worker","metadata":{{"name":"w"}},
        "spec":{{"queues":[{{"name":"q"}}],"handler":{{"pull":{{}}}},"template":{}}}}}"#,
        nested(200)
    );
    assert!(serde_json::from_str::<Worker>(&worker).is_ok());
}

#[test]
fn phases_of_a_newer_operator_can_be_read() {
    let object = json!({
        "apiVersion": "longshore.dev/v1alpha1", "kind": "Workflow", "metadata": { "name": "w" },
        "spec": { "queueRef": { "name": "q" }, "steps": [{ "name": "one", "job": { "type": "t" } }] },
        "status": { "phase": "Compensating", "steps": [{ "name": "one", "phase": "Skewed" }] },
    });
    let status = serde_json::from_value::<Workflow>(object).unwrap().status.unwrap();
    assert_eq!((status.phase, status.steps[0].phase), (WorkflowPhase::Unknown, StepPhase::Unknown));
}
