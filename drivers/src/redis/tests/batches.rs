//! Batches that take several requests.

use super::{ALWAYS, Subject};
use crate::{Driver, Enqueued, ErrorKind, JobId, NewJob, Payload};
use bytes::Bytes;
use std::time::Duration;

const MIB: usize = 1024 * 1024;

fn heavy(count: usize) -> Vec<NewJob> {
    let bytes = Bytes::from(vec![b'x'; MIB]);
    let jobs = (0..count).map(|index| {
        let payload = Payload { content_type: "text/plain".into(), bytes: bytes.clone() };
        NewJob::new("mail", payload).with_id(JobId::new(format!("job-{index}")).unwrap())
    });
    jobs.collect()
}

#[tokio::test]
async fn a_batch_whose_later_part_fails_tells_of_each_job() {
    let subject = Subject::start(ALWAYS).await;
    let info: String = subject.raw(&["INFO", "memory"]).await;
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap().trim();
    let most = used.parse::<usize>().unwrap() + 10 * MIB;
    let () = subject.raw(&["CONFIG", "SET", "maxmemory", &most.to_string()]).await;
    let answers = subject.driver.enqueue(&subject.queue, heavy(15)).await.unwrap();
    let created = answers.iter().filter(|answer| matches!(answer, Ok(Enqueued::Created { .. }))).count();
    assert!((1..15).contains(&created), "{created} created");
    for (index, answer) in answers.iter().enumerate() {
        let id = JobId::new(format!("job-{index}")).unwrap();
        let found = subject.driver.inspect(&subject.queue, &id).await.unwrap();
        assert_eq!(found.is_some(), answer.is_ok(), "{id}: {answer:?}");
        if let Err(error) = answer {
            assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
        }
    }
    subject.end().await;
}

#[tokio::test]
async fn a_large_batch_that_nobody_waits_for_any_more_is_done_whole() {
    let subject = Subject::start(&["--appendonly", "no"]).await;
    let ready = async || -> usize { subject.raw(&["ZCARD", "longshore:{test}:R"]).await };
    let some = async {
        while ready().await == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        answers = subject.driver.enqueue(&subject.queue, heavy(30)) => assert_eq!(answers.unwrap().len(), 30),
        () = some => {}
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while ready().await != 30 {
        assert!(tokio::time::Instant::now() < deadline, "{} of 30 jobs", ready().await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    subject.end().await;
}
