//! The wake stream, from hint to reconnection.

use super::{Server, Setup, config, eventually, in_time, queue, raw};
use futures::StreamExt;
use longshore_drivers::{
    Driver, DriverExt, ErrorKind, NewJob, Payload, Wake,
    http::{client::HttpDriver, server::ApiLimits},
};
use std::time::Duration;
use tokio::{io::AsyncWriteExt, net::TcpListener};

async fn enqueue(client: &HttpDriver) {
    client.enqueue_one(&queue(), NewJob::new("a", Payload::default())).await.unwrap();
}

#[tokio::test]
async fn hints_come_through() {
    let server = Server::start().await;
    let client = server.client();
    let mut hints = client.wake().await.unwrap();
    enqueue(&client).await;
    let hint = in_time(hints.next()).await.unwrap().unwrap();
    assert_eq!(hint, Wake::Queue { queue: queue() });
}

#[tokio::test]
async fn a_subscriber_that_goes_away_is_noticed() {
    let api = ApiLimits { heartbeat: Duration::from_millis(10), ..ApiLimits::default() };
    let server = Setup { api, ..Setup::default() }.start().await;
    let hints = server.client().wake().await.unwrap();
    eventually("it is subscribed", || server.stub.wakes.receiver_count() == 1).await;
    drop(hints);
    eventually("it is gone", || server.stub.wakes.receiver_count() == 0).await;
}

#[tokio::test]
async fn a_subscription_survives_the_server() {
    let server = Server::start().await;
    let (client, address) = (server.client(), server.address);
    let mut hints = client.wake().await.unwrap();
    server.stop().await;
    let lost = in_time(hints.next()).await.unwrap().unwrap_err();
    assert_eq!(lost.kind, ErrorKind::Unavailable);

    let address = Some(address);
    let server = Setup { address, ..Setup::default() }.start().await;
    let next = async {
        loop {
            if let Ok(hint) = hints.next().await.unwrap() {
                return hint;
            }
        }
    };
    let (hint, ()) = in_time(async {
        tokio::join!(next, async {
            eventually("it is back", || server.stub.wakes.receiver_count() == 1).await;
            enqueue(&client).await;
        })
    })
    .await;
    assert_eq!(hint, Wake::Queue { queue: queue() });
    client.close().await;
    while let Some(hint) = in_time(hints.next()).await {
        drop(hint);
    }
    assert_eq!(client.wake().await.err().unwrap().kind, ErrorKind::Unavailable);
}

#[tokio::test]
async fn silence_is_a_loss() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = config(listener.local_addr().unwrap());
    config.silence = Duration::from_millis(50);
    let peer = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        raw::request(&mut stream).await.unwrap();
        let lines = "{\"wake\":\"heartbeat\"}\n{\"wake\":\"something-new\",\"x\":1}\n";
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n";
        stream.write_all(format!("{head}{lines}").as_bytes()).await.unwrap();
        stream
    });
    let client = HttpDriver::new(config);
    let mut hints = client.wake().await.unwrap();
    let _open = peer.await.unwrap();
    let lost = in_time(hints.next()).await.unwrap().unwrap_err();
    assert_eq!(lost.kind, ErrorKind::Unavailable);
    assert!(lost.message.contains("silent"), "{lost}");
}
