use super::*;
use crate::{
    DriverExt, QueueSettings,
    http::{
        client::{HttpConfig, HttpDriver, TokenSource},
        server::{ApiLimits, ServeLimits, Tokens, broker_router, serve},
    },
    memory::Memory,
};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// A server that lets in whoever brings the word `new` or `newer`, and a driver that brings what stands in a file.
struct World {
    directory: TempDir,
    driver: Result<Renewing>,
    opened: Arc<AtomicUsize>,
    stop: CancellationToken,
}

impl World {
    async fn new(word: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let tokens = Arc::new(Tokens::fixed(["new", "newer"]));
        let router = broker_router(Arc::new(Memory::new()), tokens, ApiLimits::default(), stop.clone());
        tokio::spawn(serve(listener, router, ServeLimits::default(), stop.clone()));
        let file = directory.path().join("url");
        fs::write(&file, word).unwrap();
        let opened = Arc::new(AtomicUsize::new(0));
        let count = opened.clone();
        let opener = move |credentials: &Credentials| {
            count.fetch_add(1, SeqCst);
            let config = HttpConfig::new(&base, TokenSource::fixed(&credentials.url))?;
            Ok(Arc::new(HttpDriver::new(config)) as DynDriver)
        };
        let driver = Renewing::open(Files::new(file.to_str().unwrap(), None), Box::new(opener));
        Self { directory, driver, opened, stop }
    }

    fn driver(&self) -> &Renewing {
        self.driver.as_ref().unwrap()
    }

    fn write(&self, word: &str) {
        fs::write(self.directory.path().join("url"), word).unwrap();
    }

    /// The next call looks at the file again, and what comes of it is waited for.
    async fn minute_passes(&self) {
        let driver = self.driver();
        driver.shared.lock().looked_at -= REFRESH;
        driver.probe().await.unwrap();
        let alone = || Arc::strong_count(&driver.shared) == 1;
        let deadline = Instant::now() + Duration::from_secs(30);
        while !alone() {
            assert!(Instant::now() < deadline, "it is still looking");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn opened(&self) -> usize {
        self.opened.load(SeqCst)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn declaration() -> Declaration {
    let owner = Owner { installation: "test".to_owned(), uid: "uid".to_owned() };
    Declaration { owner, settings: QueueSettings::default(), adopt: false }
}

#[tokio::test]
async fn a_refused_call_is_made_again_with_what_stands_in_the_file_by_now() {
    let world = World::new("old").await;
    let queue: QueueName = "test.shop.emails".parse().unwrap();
    let driver = world.driver();
    let refused = driver.declare(&queue, declaration()).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unauthorized);
    assert_eq!(world.opened(), 1, "nothing changed, so nothing is opened");
    world.write("new\n");
    driver.declare(&queue, declaration()).await.unwrap();
    let id = JobId::generate();
    let job = NewJob::new("send", Payload::json("{}")).with_id(id.clone());
    driver.enqueue_one(&queue, job).await.unwrap();
    assert!(driver.inspect(&queue, &id).await.unwrap().is_some());
    assert_eq!(world.opened(), 2);
}

#[tokio::test]
async fn a_change_is_seen_after_a_minute_even_if_nobody_is_refused() {
    let world = World::new("new").await;
    let driver = world.driver();
    driver.probe().await.unwrap();
    world.write("newer");
    driver.probe().await.unwrap();
    assert_eq!(world.opened(), 1);
    world.minute_passes().await;
    assert_eq!(driver.shared.lock().credentials.url, "newer");
    driver.probe().await.unwrap();
    assert_eq!(world.opened(), 2);
}

#[tokio::test]
async fn credentials_that_the_server_refuses_do_not_replace_those_that_work() {
    let world = World::new("new").await;
    let driver = world.driver();
    driver.probe().await.unwrap();
    world.write("mistyped");
    world.minute_passes().await;
    assert_eq!(world.opened(), 2, "they were tried");
    assert_eq!(driver.shared.lock().credentials.url, "new");
    driver.probe().await.unwrap();
}

#[tokio::test]
async fn what_can_not_be_read_changes_nothing() {
    let world = World::new("new").await;
    let driver = world.driver();
    for broken in ["", " \n"] {
        world.write(broken);
        world.minute_passes().await;
    }
    fs::remove_file(world.directory.path().join("url")).unwrap();
    world.minute_passes().await;
    driver.probe().await.unwrap();
    assert_eq!(world.opened(), 1);
}

#[tokio::test]
async fn nothing_is_opened_after_the_end() {
    let world = World::new("old").await;
    let driver = world.driver();
    driver.close().await;
    world.write("new");
    driver.shared.lock().looked_at -= REFRESH;
    assert_eq!(driver.probe().await.unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(world.opened(), 1);
}

#[tokio::test]
async fn a_driver_needs_its_files_to_begin_with() {
    for word in ["", "\n"] {
        assert_eq!(World::new(word).await.driver.as_ref().unwrap_err().kind, ErrorKind::Invalid);
    }
    let nowhere = Files::new("/nowhere/url", None);
    let opener: Opener = Box::new(|_| unreachable!("there is nothing to open it with"));
    assert_eq!(Renewing::open(nowhere, opener).unwrap_err().kind, ErrorKind::Unauthorized);
}

#[test]
fn credentials_are_not_in_debug_output() {
    let credentials = Credentials { url: "redis://me:hunter2@host".to_owned(), ca: Some(b"pem".to_vec()) };
    assert_eq!(format!("{credentials:?}"), "Credentials { url: …, ca: 3 bytes }");
}
