//! The client against servers of others: `LARDER_TEST_SERVERS` names them (`tests/remote_servers.rs`).

use super::*;
use bazel_remote_apis::build::bazel::remote::execution::v2 as reapi;
use prost::Message;

#[tokio::test]
async fn servers_of_others_take_and_give() -> TestResult {
    let Ok(servers) = std::env::var("LARDER_TEST_SERVERS") else {
        assert!(
            std::env::var_os("LARDER_TEST_REQUIRE").is_none(),
            "LARDER_TEST_SERVERS is required"
        );
        eprintln!("SKIPPED: LARDER_TEST_SERVERS names no servers");
        return Ok(());
    };
    for server in servers.split(',') {
        let (name, url) = server.split_once('=').ok_or("name=URL")?;
        println!("{name}");
        takes_and_gives(url).await?;
    }
    Ok(())
}

async fn takes_and_gives(url: &str) -> TestResult {
    let client = Client::connect(options(url));
    println!("{:?}", client.status().await?);
    let function = client.capabilities().await?.digest_function;
    // Nobody has had these blobs before.
    let seed = std::process::id().into();
    let mut blobs: Vec<Vec<u8>> = [0, 1, 1000, 20_000, 3_999_000, 4_000_000, 5 << 20, 20 << 20]
        .iter()
        .enumerate()
        .map(|(index, count)| noise(seed + (index as u64) * 1_000_000, *count))
        .collect();
    for count in [100_000, 6 << 20] {
        let mut bytes = prose(count);
        bytes[..8].copy_from_slice(&u64::to_le_bytes(seed));
        blobs.push(bytes);
    }
    blobs.extend((0..2000).map(|index| noise(seed + index * 7 + 1, 300)));
    let all: Vec<Upload> = blobs.iter().map(|bytes| upload_of(function, bytes)).collect();
    let names: Vec<RemoteDigest> = all.iter().map(|upload| upload.digest).collect();
    let missing = client.find_missing(&names).await?;
    assert_eq!(missing.len(), names.len() - 1, "all but the empty one");
    println!("{:?}", client.upload(all.clone()).await?);
    assert!(client.find_missing(&names).await?.is_empty());
    println!("{:?} the second time", client.upload(all).await?);
    let found = take(&client, &names).await;
    for (digest, bytes) in names.iter().zip(&blobs) {
        assert!(found[digest].as_ref().map_err(Clone::clone)? == bytes, "{digest}");
    }

    for size in [10, 9 << 20] {
        let absent = take_one(&client, RemoteDigest::new([seed as u8; 32], size)).await;
        assert!(matches!(absent, Err(RemoteError::Absent { .. })), "{:?}", absent.err());
    }

    let command = reapi::Command { arguments: vec![seed.to_string()], ..Default::default() };
    let command = command.encode_to_vec();
    let action = reapi::Action {
        command_digest: Some(function.digest(&command).to_message()),
        input_root_digest: Some(function.digest(b"").to_message()),
        ..Default::default()
    };
    let action = action.encode_to_vec();
    let name = function.digest(&action);
    assert_eq!(client.get_action(&name).await?, None);
    client.upload(vec![upload_of(function, &command), upload_of(function, &action)]).await?;
    let result = reapi::ActionResult {
        output_files: vec![reapi::OutputFile {
            path: "out".to_owned(),
            digest: Some(names[2].to_message()),
            ..Default::default()
        }],
        ..Default::default()
    };
    client.update_action(&name, result.clone()).await?;
    let found = client.get_action(&name).await?.ok_or("it was just stored")?;
    assert_eq!(found.output_files, result.output_files);
    assert!(client.is_available() && client.take_outage().is_none());
    Ok(())
}
