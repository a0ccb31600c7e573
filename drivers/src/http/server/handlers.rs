//! One function per route: take the request apart, ask the driver, put the answer together.

use super::{
    super::wire::{
        AcknowledgeBody, Answers, ClaimedJobs, Each, EnqueueBody, ExtendBody, IdsBody, Inspected, PurgeBody,
        Purged, Results, SettleBody,
    },
    Api,
    answer::Json,
    body::{Bounded, unreadable},
    claim,
    extract::{Answer, At, Job, Owned, Page, Queue, nothing},
};
use crate::{
    Claim, CompletionPage, Declaration, Declared, Enqueued, Error, ErrorKind, Extension, JobId, JobPage,
    JobState, Limits, NewJob, Payload, Probe, QueueStats, ReadCompletions, Result, Settlement,
};
use axum::{
    extract::State,
    response::{IntoResponse, Response},
};

pub(super) async fn probe(State(api): State<Api>) -> Answer<Probe> {
    api.shared.directory.broker()?.probe().await.map(Json)
}

pub(super) async fn declare(queue: Queue, body: Bounded<Declaration>) -> Answer<Declared> {
    queue.driver.declare(&queue.name, body.value).await.map(Json)
}

pub(super) async fn delete(queue: Queue, Owned(owner): Owned) -> Result<Response> {
    queue.driver.delete_queue(&queue.name, &owner).await?;
    Ok(nothing())
}

pub(super) async fn enqueue(
    queue: Queue,
    body: Bounded<EnqueueBody<Each<NewJob>>>,
) -> Answer<Answers<Enqueued>> {
    let jobs = body.value.jobs;
    check_batch("jobs", jobs.len())?;
    let answers = each("the job", jobs, |jobs| queue.driver.enqueue(&queue.name, jobs)).await?;
    Ok(Json(answers.into()))
}

pub(super) async fn claim(State(api): State<Api>, queue: Queue, body: Bounded<Claim>) -> Result<Response> {
    // Its share of the bodies goes back before the wait: a crowd of waiting claims must not keep others out.
    let (jobs, share) = claim::claim(&api, &queue, body.into_value()).await?;
    let response = Json(ClaimedJobs { jobs }).into_response();
    drop(share);
    Ok(response)
}

pub(super) async fn extend(queue: Queue, body: Bounded<ExtendBody>) -> Answer<Answers<Extension>> {
    let ExtendBody { receipts, lease } = body.value;
    check_batch("receipts", receipts.len())?;
    let answers = queue.driver.extend(&queue.name, receipts, lease).await?;
    Ok(Json(answers.into()))
}

pub(super) async fn settle(queue: Queue, body: Bounded<SettleBody<Each<Settlement>>>) -> Answer<Answers<()>> {
    let settlements = body.value.settlements;
    check_batch("settlements", settlements.len())?;
    let settle = |settlements| queue.driver.settle(&queue.name, settlements);
    let answers = each("the settlement", settlements, settle).await?;
    Ok(Json(answers.into()))
}

pub(super) async fn stats(queue: Queue) -> Answer<QueueStats> {
    queue.driver.stats(&queue.name).await.map(Json)
}

pub(super) async fn list(queue: Queue, Page(page): Page) -> Answer<JobPage> {
    queue.driver.list(&queue.name, page).await.map(Json)
}

pub(super) async fn inspect(queue: Queue, Job(id): Job) -> Answer<Inspected> {
    let job = queue.driver.inspect(&queue.name, &id).await?;
    Ok(Json(Inspected { job }))
}

/// Reads results in slices, so that a response stays within its limit; too many at once are `TooLarge`.
pub(super) async fn results(
    State(api): State<Api>,
    queue: Queue,
    body: Bounded<IdsBody>,
) -> Result<Response> {
    let ids = body.value.ids;
    check_batch("ids", ids.len())?;
    let limit = api.shared.limits.claimed;
    let largest = queue.driver.capabilities().limits.max_result.max(1);
    let share = api.share_of_responses(largest.saturating_mul(ids.len()).min(limit)).await?;
    let slice = (limit / largest).max(1);
    let (mut results, mut spent) = (Vec::with_capacity(ids.len()), 0);
    for ids in ids.chunks(slice) {
        let some = queue.driver.results(&queue.name, ids.to_vec()).await?;
        spent += some.iter().flatten().map(Payload::len).sum::<usize>();
        results.extend(some);
        if spent > limit && results.len() > 1 {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("these results take more than {limit} bytes; ask for fewer at a time"),
            ));
        }
    }
    let response = Json(Results { results }).into_response();
    drop(share);
    Ok(response)
}

pub(super) async fn cancel(queue: Queue, body: Bounded<IdsBody<Each<JobId>>>) -> Answer<Answers<JobState>> {
    let ids = body.value.ids;
    check_batch("ids", ids.len())?;
    let answers = each("the id", ids, |ids| queue.driver.cancel(&queue.name, ids)).await?;
    Ok(Json(answers.into()))
}

pub(super) async fn redrive(queue: Queue, body: Bounded<IdsBody<Each<JobId>>>) -> Answer<Answers<()>> {
    let ids = body.value.ids;
    check_batch("ids", ids.len())?;
    let answers = each("the id", ids, |ids| queue.driver.redrive(&queue.name, ids)).await?;
    Ok(Json(answers.into()))
}

pub(super) async fn purge(queue: Queue, body: Bounded<PurgeBody>) -> Answer<Purged> {
    let PurgeBody { state, limit } = body.value;
    let purged = queue.driver.purge(&queue.name, state, limit).await?;
    Ok(Json(Purged { purged }))
}

pub(super) async fn read_completions(
    State(api): State<Api>,
    At(address): At,
    body: Bounded<ReadCompletions>,
) -> Answer<CompletionPage> {
    let read = body.into_value();
    let broker = api.shared.directory.broker()?;
    let read = ReadCompletions { wait: read.wait.min(api.shared.limits.wait), ..read };
    tokio::select! {
        biased;
        page = broker.completions(&address, read) => page.map(Json),
        () = api.shared.stop.cancelled() => Err(Error::unavailable("the server is going away")),
    }
}

pub(super) async fn acknowledge(
    State(api): State<Api>,
    At(address): At,
    body: Bounded<AcknowledgeBody>,
) -> Result<Response> {
    check_batch("receipts", body.value.receipts.len())?;
    let broker = api.shared.directory.broker()?;
    broker.acknowledge(&address, body.value.receipts).await?;
    Ok(nothing())
}

pub(super) async fn unpin(queue: Queue, body: Bounded<IdsBody>) -> Result<Response> {
    check_batch("ids", body.value.ids.len())?;
    queue.driver.unpin(&queue.name, body.value.ids).await?;
    Ok(nothing())
}

/// Makes `call` with the items that could be read. The others are refused here, each in its place.
async fn each<T, R, F>(
    what: &str,
    items: Vec<Each<T>>,
    call: impl FnOnce(Vec<T>) -> F + Send,
) -> Result<Vec<Result<R>>>
where
    F: Future<Output = Result<Vec<Result<R>>>>,
{
    let mut readable = Vec::with_capacity(items.len());
    let sort =
        |Each(item): Each<T>| item.map(|item| readable.push(item)).map_err(|error| unreadable(what, &error));
    let verdicts: Vec<Result<()>> = items.into_iter().map(sort).collect();
    let mut answers = call(readable).await?.into_iter();
    let missing = || Err(Error::new(ErrorKind::Fatal, "the driver answered too few items"));
    let answer = |verdict: Result<()>| verdict.and_then(|()| answers.next().unwrap_or_else(missing));
    Ok(verdicts.into_iter().map(answer).collect())
}

fn check_batch(what: &str, items: usize) -> Result<()> {
    if items > Limits::BATCH {
        return Err(Error::invalid(format!("{items} {what} in one call, the limit is {}", Limits::BATCH)));
    }
    Ok(())
}
