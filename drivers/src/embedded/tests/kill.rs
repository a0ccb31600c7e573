//! What was answered outlives the process.

use super::{Broker, job, read, to};
use crate::{
    Address, Claim, Driver, JobId, JobState, Payload, QueueName, ReadCompletions, Settle, Settlement,
    embedded::{Config, Embedded},
};
use std::{collections::BTreeSet, io::BufRead, time::Duration};

/// Where a child finds its database.
const CHILD: &str = "LONGSHORE_TEST_CHILD_DB";

/// Runs a test of this module as a process of its own on the broker's file and kills it when it has printed so many lines
/// of `word`s; what it printed, by word. The last line may have been cut and is left out.
async fn killed(broker: &mut Broker, test: &str, word: &str, count: usize) -> Vec<(String, String)> {
    broker.driver.close().await;
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([&format!("embedded::tests::kill::{test}"), "--exact", "--ignored", "--nocapture"])
        .env(CHILD, &broker.config.path)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let (mut printed, mut seen) = (Vec::new(), 0);
    for line in lines.map_while(Result::ok) {
        let Some((word_of_line, id)) = line.split_once(": ") else { continue };
        let word_of_line = word_of_line.rsplit(' ').next().unwrap_or_default();
        printed.push((word_of_line.to_owned(), id.to_owned()));
        seen += usize::from(word_of_line == word);
        if seen == count {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(seen >= count, "the child ended early");
    printed.pop();
    broker.restart().await;
    printed
}

fn of(printed: &[(String, String)], word: &str) -> BTreeSet<JobId> {
    let of_word = printed.iter().filter(|(printed, _)| printed == word);
    of_word.map(|(_, id)| JobId::new(id.as_str()).unwrap()).collect()
}

fn child() -> Option<(Embedded, QueueName)> {
    let path = std::env::var_os(CHILD)?;
    Some((Embedded::open(Config::new(path)).unwrap(), "q".parse().unwrap()))
}

#[tokio::test]
#[ignore = "the other half of `what_was_acknowledged_survives_the_death_of_the_process`"]
async fn child_that_enqueues() {
    let Some((driver, queue)) = child() else { return };
    loop {
        for answer in driver.enqueue(&queue, vec![job(); 3]).await.unwrap() {
            println!("enqueued: {}", answer.unwrap().id());
        }
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_the_death_of_the_process() {
    let mut broker = Broker::start().await;
    let printed = killed(&mut broker, "child_that_enqueues", "enqueued", 500).await;
    for id in of(&printed, "enqueued") {
        assert!(broker.driver.inspect(&broker.queue, &id).await.unwrap().is_some(), "{id}");
    }
}

#[tokio::test]
#[ignore = "the other half of `settles_and_acknowledgements_survive_the_death_of_the_process`"]
async fn child_that_settles() {
    let Some((driver, queue)) = child() else { return };
    let told = Address::new("told").unwrap();
    loop {
        let jobs = ["told", "kept"].into_iter().map(to).collect();
        driver.enqueue(&queue, jobs).await.unwrap();
        let claim =
            Claim { max: 10, wait: Duration::ZERO, lease: Duration::from_secs(60), worker: String::new() };
        let claimed = driver.claim(&queue, claim).await.unwrap();
        let result = Some(Payload::json(vec![b'1'; 2000]));
        let settle = |job: &crate::Claimed| Settlement {
            receipt: job.receipt.clone(),
            settle: Settle::Succeed { result: result.clone() },
        };
        let settled = driver.settle(&queue, claimed.iter().map(settle).collect()).await.unwrap();
        for (job, answer) in claimed.iter().zip(settled) {
            answer.unwrap();
            println!("{}: {}", job.notify.as_ref().unwrap().address, job.id);
        }
        let read = ReadCompletions { max: 10, wait: Duration::ZERO, lease: Duration::from_secs(10) };
        let page = driver.completions(&told, read).await.unwrap();
        let receipts = page.completions.iter().map(|completion| completion.receipt.clone()).collect();
        driver.acknowledge(&told, receipts).await.unwrap();
        page.completions.iter().for_each(|completion| println!("heard: {}", completion.job));
    }
}

#[tokio::test]
async fn settles_and_acknowledgements_survive_the_death_of_the_process() {
    let mut broker = Broker::start().await;
    let printed = killed(&mut broker, "child_that_settles", "heard", 100).await;
    let kept = of(&printed, "kept");
    for id in kept.union(&of(&printed, "told")) {
        let record = broker.driver.inspect(&broker.queue, id).await.unwrap().unwrap();
        assert_eq!(record.state, JobState::Succeeded, "{id}");
        let results = broker.driver.results(&broker.queue, vec![id.clone()]).await.unwrap();
        assert_eq!(results[0].as_ref().map(Payload::len), Some(2000), "{id}");
    }
    let waiting = all(&broker, "kept").await;
    assert!(waiting.is_superset(&kept), "completions are missing");
    let told = all(&broker, "told").await;
    assert!(told.is_disjoint(&of(&printed, "heard")), "an acknowledged completion came back");
}

/// The jobs of all completions that nobody holds.
async fn all(broker: &Broker, address: &str) -> BTreeSet<JobId> {
    let mut jobs = BTreeSet::new();
    loop {
        let page = read(broker, address).await;
        if page.completions.is_empty() {
            return jobs;
        }
        jobs.extend(page.completions.into_iter().map(|completion| completion.job));
    }
}
