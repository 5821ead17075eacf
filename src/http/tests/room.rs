//! Who gets room for bodies and for large answers, and who does not.

use super::*;

/// 100 KiB: 88 in common, 12 for small bodies.
async fn small_house() -> Running {
    start(|s| {
        s.max_in_flight = 100 << 10;
        s.max_payload_size = 1 << 20;
        s.admit_wait = Duration::from_millis(50);
    })
    .await
}

#[tokio::test]
async fn a_full_house_is_503_but_for_small_bodies() {
    let server = small_house().await;
    let mut holder = server.client().await;
    holder.send("POST /api/v1/write/msgpack HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n").await;
    for _ in 0..2 {
        holder.send(vec![b'x'; 40_000]).await;
        sleep(Duration::from_millis(50)).await;
    }
    server.until(|| server.metric("arc_http_in_flight_bytes 90112")).await;
    let mut client = server.client().await;
    client.post("", vec![b'x'; 20_000]).await.assert_error(503, "unavailable", Some("not_stored"));
    assert_eq!(client.post("", vec![b'x'; 10_000]).await.status, 204, "there is room for this one");
    client.send([CHUNKED.as_bytes(), b"4\r\nrows\r\n0\r\n\r\n"].concat()).await;
    assert_eq!(client.answer(false).await.unwrap().status, 204, "and for this one");

    holder.send(vec![b'x'; 10_000]).await;
    assert_eq!(holder.answer(false).await.unwrap().status, 204);
    let mut client = server.client().await;
    assert_eq!(client.post("", vec![b'x'; 500_000]).await.status, 204, "larger than the whole: alone");
    assert!(server.metric("arc_http_in_flight_bytes 0"));
    assert!(server.metric("arc_http_rejected_total{reason=\"in_flight\"} 1"));
}

#[tokio::test]
async fn what_is_announced_and_not_sent_takes_no_room() {
    let server = small_house().await;
    let mut silent = Vec::new();
    for sent in [0, 1, 1000].repeat(5) {
        let mut client = server.client().await;
        client.send("POST /api/v1/write/msgpack HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n").await;
        client.send(vec![b'x'; sent]).await;
        silent.push(client);
    }
    server.until(|| server.metric("arc_http_in_flight_bytes 10240")).await;
    let mut client = server.client().await;
    for _ in 0..3 {
        let begun = Instant::now();
        assert_eq!(client.post("", vec![b'x'; 70_000]).await.status, 204);
        assert!(begun.elapsed() < Duration::from_millis(40), "it did not wait: {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn small_bodies_do_not_queue_behind_large_ones() {
    let server = start(|s| {
        s.max_in_flight = 16 << 20;
        s.admit_wait = Duration::from_secs(5);
    })
    .await;
    let announce = format!("POST /api/v1/write/msgpack HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 10 << 20);
    let mut large = Vec::new();
    for _ in 0..3 {
        let mut client = server.client().await;
        client.send(&announce).await;
        client.send(vec![b'x'; 3 << 20]).await;
        large.push(client);
    }
    sleep(Duration::from_millis(200)).await;
    let mut client = server.client().await;
    for _ in 0..3 {
        let begun = Instant::now();
        assert_eq!(client.post("", vec![b'x'; 200_000]).await.status, 204);
        assert!(begun.elapsed() < Duration::from_secs(1), "it waited with the large ones: {:?}", begun.elapsed());
    }
    drop(large);
    server.until(|| server.metric("arc_http_in_flight_bytes 0")).await;
}

#[tokio::test]
async fn the_beginnings_of_large_bodies_leave_the_reserved_part_alone() {
    let server = small_house().await;
    let mut begun = Vec::new();
    for _ in 0..20 {
        let mut client = server.client().await;
        client.send("POST /api/v1/write/msgpack HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n").await;
        for _ in 0..2 {
            client.send(vec![b'x'; 2000]).await;
            sleep(Duration::from_millis(5)).await;
        }
        begun.push(client);
    }
    server.until(|| server.metrics.render().contains("arc_http_rejected_total{reason=\"in_flight\"}")).await;
    let mut client = server.client().await;
    assert_eq!(client.post("", vec![b'x'; 10_000]).await.status, 204);
}

#[tokio::test]
async fn large_answers_wait_for_their_readers_only_within_bounds() {
    let server = start(|s| s.admit_wait = Duration::from_millis(50)).await;
    *server.backend.status_len.lock().unwrap() = 12 << 20;
    let mut deaf = Vec::new();
    for _ in 0..2 {
        let mut client = server.client().await;
        client.send(get("/api/v1/status")).await;
        client.socket.readable().await.unwrap();
        deaf.push(client);
    }
    server.once(&get("/api/v1/status")).await.assert_error(503, "unavailable", Some("not_stored"));
    assert_eq!(server.once(&get("/health")).await.status, 200);
    for mut client in deaf {
        let answer = client.answer(false).await.unwrap();
        assert_eq!((answer.status, answer.json()["version"].as_str().unwrap().len()), (200, 12 << 20));
    }
    assert_eq!(server.once(&get("/api/v1/status")).await.status, 200);
}
