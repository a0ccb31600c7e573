//! The client against a server that behaves.

use super::{Server, Setup, config, eventually, in_time, owner, queue, stub::Stub};
use futures::future::join_all;
use longshore_drivers::{
    Claim, Declaration, Driver, DriverExt, Durability, Enqueued, ErrorKind, JobId, JobState, Limits,
    ListJobs, NewJob, Owner, Payload, ReadCompletions, Receipt, Settle, Settlement,
    http::{client::HttpDriver, server::ApiLimits},
};
use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

fn job(bytes: usize) -> NewJob {
    NewJob::new("mail", Payload::json("1".repeat(bytes)))
}

#[tokio::test]
async fn every_call_arrives() {
    let server = Server::start().await;
    let (client, name, id) = (server.client(), "test.shop.new".parse().unwrap(), JobId::new("a").unwrap());
    let declaration =
        Declaration { owner: owner(), settings: longshore_drivers::QueueSettings::default(), adopt: false };
    assert!(client.declare(&name, declaration).await.unwrap().created);
    let enqueued = client.enqueue_one(&name, job(3).with_id(id.clone())).await.unwrap();
    assert_eq!(enqueued, Enqueued::Created { id: id.clone() });
    let claim = Claim { max: 5, wait: Duration::ZERO, lease: Duration::from_secs(1), worker: "w".to_owned() };
    let jobs = client.claim(&name, claim).await.unwrap();
    assert_eq!((jobs[0].id.as_str(), &jobs[0].payload), ("a", &Payload::json("111")));
    let stale = client.extend_one(&name, &jobs[0].receipt, Duration::from_secs(1)).await;
    assert_eq!(stale.unwrap_err().kind, ErrorKind::StaleReceipt);
    let settle = |receipt: &str| Settlement {
        receipt: Receipt(receipt.to_owned()),
        settle: Settle::Succeed { result: Some(Payload::json("2")) },
    };
    let settled = client.settle(&name, vec![settle("good"), settle("stale")]).await.unwrap();
    assert!(settled[0].is_ok());
    assert_eq!(settled[1].as_ref().unwrap_err().kind, ErrorKind::StaleReceipt);
    assert_eq!(client.inspect(&name, &id).await.unwrap(), None);
    let list = ListJobs { state: JobState::Dead, limit: 7, after: Some("x &y".to_owned()) };
    assert_eq!(client.list(&name, list).await.unwrap().next.unwrap(), "Dead 7 x &y");
    assert_eq!(client.cancel(&name, vec![id.clone()]).await.unwrap_err().kind, ErrorKind::Unsupported);
    assert!(client.redrive(&name, vec![id.clone()]).await.unwrap()[0].is_ok());
    assert_eq!(client.purge(&name, JobState::Dead, 9).await.unwrap(), 9);
    assert_eq!(client.results(&name, vec![id]).await.unwrap(), [None]);
    let address = longshore_drivers::Address::new("test").unwrap();
    let read = ReadCompletions { max: 1, wait: Duration::ZERO, lease: Duration::from_secs(1) };
    assert!(client.completions(&address, read).await.unwrap().caught_up);
    client.acknowledge(&address, Vec::new()).await.unwrap();
    client.unpin(&name, vec![JobId::new("a").unwrap()]).await.unwrap();
    let other = Owner { uid: "a b&ü=1".to_owned(), ..owner() };
    assert_eq!(client.delete_queue(&name, &other).await.unwrap_err().kind, ErrorKind::Conflict);
    client.delete_queue(&name, &owner()).await.unwrap();
    assert_eq!(client.stats(&name).await.unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn capabilities_are_assumed_until_they_are_known() {
    let server = Server::start().await;
    let client = server.client();
    assert_eq!(client.capabilities().durability, Durability::Machine);
    client.probe().await.unwrap();
    assert_eq!(client.capabilities().durability, Durability::None);
    assert_eq!(client.capabilities(), server.stub.capabilities());
    let connected = HttpDriver::connect(config(server.address)).await.unwrap();
    assert_eq!(connected.capabilities(), server.stub.capabilities());
}

#[tokio::test]
async fn a_long_poll_ends_with_the_first_job() {
    let server = Server::start().await;
    let (client, name) = (server.client(), queue());
    let claim =
        Claim { max: 5, wait: Duration::from_mins(1), lease: Duration::from_secs(30), worker: String::new() };
    let (claimed, ()) = in_time(async {
        tokio::join!(client.claim(&name, claim), async {
            eventually("the claim waits", || server.stub.waiting.load(Ordering::SeqCst) == 1).await;
            client.enqueue_one(&name, job(1)).await.unwrap();
        })
    })
    .await;
    assert_eq!(claimed.unwrap().len(), 1);
}

#[tokio::test]
async fn concurrent_single_enqueues_share_requests() {
    let stub = Stub::closed_gate();
    let server = Setup { stub, ..Setup::default() }.start().await;
    let (client, name) = (server.client(), queue());
    let ids: Vec<_> = (0..200).map(|n| JobId::new(format!("j{n}")).unwrap()).collect();
    let singles = ids.iter().map(|id| client.enqueue_one(&name, job(1).with_id(id.clone())));
    let (answers, ()) = in_time(async {
        tokio::join!(join_all(singles), async {
            eventually("the first left", || server.stub.batches.lock().unwrap().len() == 1).await;
            server.stub.gate.add_permits(2);
        })
    })
    .await;
    for (id, answer) in ids.iter().zip(answers) {
        assert_eq!(answer.unwrap().id(), id, "everybody gets their own answer");
    }
    let batches = server.stub.batches.lock().unwrap().clone();
    assert_eq!(batches.iter().sum::<usize>(), 200);
    assert!(batches.len() <= 2, "{batches:?}");
}

#[tokio::test]
async fn a_lone_enqueue_leaves_at_once() {
    let server = Server::start().await;
    let (client, name) = (server.client(), queue());
    let started = Instant::now();
    for _ in 0..20 {
        client.enqueue_one(&name, job(1)).await.unwrap();
    }
    assert_eq!(*server.stub.batches.lock().unwrap(), [1; 20]);
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[tokio::test]
async fn neighbours_in_a_request_do_not_hurt_each_other() {
    let stub = Stub::closed_gate();
    let server = Setup { stub, ..Setup::default() }.start().await;
    let (client, name) = (server.client(), queue());
    let sizes = [1, Limits::default().max_payload + 1, 1, 1];
    let all = sizes.iter().map(|bytes| client.enqueue_one(&name, job(*bytes)));
    let gone = client.enqueue_one(&name, job(1));
    let (answers, ()) = in_time(async {
        tokio::join!(join_all(all), async {
            eventually("the first left", || server.stub.batches.lock().unwrap().len() == 1).await;
            // A caller that gives up while its job still gathers.
            assert!(futures::poll!(std::pin::pin!(gone)).is_pending());
            server.stub.gate.add_permits(2);
        })
    })
    .await;
    let kinds: Vec<_> = answers.into_iter().map(|answer| answer.err().map(|error| error.kind)).collect();
    assert_eq!(kinds, [None, Some(ErrorKind::TooLarge), None, None]);
    let queued = server.stub.queues.lock().unwrap()[&name].len();
    assert_eq!(queued, 3);
}

#[tokio::test]
async fn a_request_that_fails_fails_for_all_of_its_callers() {
    let server = Server::start().await;
    let (client, name) = (server.client(), "no.such.queue".parse().unwrap());
    let answers = join_all((0..50).map(|_| client.enqueue_one(&name, job(1)))).await;
    assert!(answers.into_iter().all(|answer| answer.unwrap_err().kind == ErrorKind::NotFound));
    client.enqueue_one(&queue(), job(1)).await.unwrap();
}

#[tokio::test]
async fn big_batches_go_in_parts() {
    let server = Server::start().await;
    let (client, name) = (server.client(), queue());
    let answers = client.enqueue(&name, vec![job(1024 * 1024); 12]).await.unwrap();
    assert!(answers.len() == 12 && answers.iter().all(Result::is_ok));
    assert!(server.stub.batches.lock().unwrap().len() > 1);
    let too_many = client.enqueue(&name, vec![job(1); Limits::BATCH + 1]).await;
    assert_eq!(too_many.unwrap_err().kind, ErrorKind::Invalid);
    assert!(client.enqueue(&name, Vec::new()).await.unwrap().is_empty());
}

#[tokio::test]
async fn results_too_big_for_one_response_come_in_several() {
    let api = ApiLimits { claimed: 64 * 1024, ..ApiLimits::default() };
    let stub = Stub::with_limits(32 * 1024);
    let ids: Vec<_> = (0..9).map(|n| JobId::new(format!("j{n}")).unwrap()).collect();
    for (n, id) in ids.iter().enumerate().skip(1) {
        let result = Payload::json(n.to_string().repeat(32 * 1024));
        stub.results.lock().unwrap().insert(id.clone(), result);
    }
    let server = Setup { stub, api, ..Setup::default() }.start().await;
    let results = server.client().results(&queue(), ids).await.unwrap();
    assert_eq!(results.len(), 9);
    for (n, result) in results.iter().enumerate() {
        let first = result.as_ref().map(|result| result.bytes[0]);
        let expected = (n > 0).then(|| b'0' + u8::try_from(n).unwrap());
        assert_eq!(first, expected);
    }
}

#[tokio::test]
async fn a_closed_driver_is_unavailable_and_its_waits_end() {
    let server = Server::start().await;
    let (client, name) = (server.client(), queue());
    let claim =
        Claim { max: 1, wait: Duration::from_mins(1), lease: Duration::from_secs(30), worker: String::new() };
    let (claimed, ()) = in_time(async {
        tokio::join!(client.claim(&name, claim), async {
            eventually("the claim waits", || server.stub.waiting.load(Ordering::SeqCst) == 1).await;
            client.close().await;
        })
    })
    .await;
    assert_eq!(claimed.unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(client.probe().await.unwrap_err().kind, ErrorKind::Unavailable);
    let refused = client.enqueue_one(&name, job(1)).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unavailable);
    drop(server.stop().await);
}
