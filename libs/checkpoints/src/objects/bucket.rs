//! A bucket, and what it says is wrong.

use std::{error::Error as StdError, sync::Arc, time::Duration};

use object_store::{
    BackoffConfig, ClientConfigKey, ObjectStore, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey},
    prefix::PrefixStore,
};

use crate::config::Config;

/// A worker's call waits for 10 s: it is to hear of the cause before.
const ASKS: RetryConfig = RetryConfig {
    backoff: BackoffConfig {
        init_backoff: Duration::from_millis(100),
        max_backoff: Duration::from_secs(1),
        base: 2.0,
    },
    max_retries: 10,
    retry_timeout: Duration::from_secs(4),
};

/// What is on its way for long is not given up for a moment. How often it is tried bounds it, not how long it takes.
const CARRIES: RetryConfig = RetryConfig {
    backoff: BackoffConfig {
        init_backoff: Duration::from_millis(100),
        max_backoff: Duration::from_secs(15),
        base: 2.0,
    },
    max_retries: 10,
    retry_timeout: Duration::from_hours(24),
};

/// A bucket through two clients.
pub(super) struct Bucket {
    /// Says soon what is wrong.
    pub(super) asks: Arc<dyn ObjectStore>,
    /// Has patience.
    pub(super) carries: Arc<dyn ObjectStore>,
}

impl Bucket {
    /// Opens it, without asking it anything.
    pub(super) fn open(
        environment: AmazonS3Builder,
        config: &Config,
        name: &str,
        prefix: &str,
    ) -> Result<Self, object_store::Error> {
        // Somebody else in this process may have set one, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = environment.with_bucket_name(name);
        if let Some(endpoint) = &config.s3_endpoint {
            builder = builder
                .with_endpoint(endpoint)
                .with_allow_http(endpoint.starts_with("http://"));
        }
        if let Some(region) = &config.s3_region {
            builder = builder.with_region(region);
        }
        let client = |builder: AmazonS3Builder, key, value| {
            builder.with_config(AmazonS3ConfigKey::Client(key), value)
        };
        let asks = client(builder.clone(), ClientConfigKey::Timeout, "8 seconds");
        let asks = asks.with_retry(ASKS).build()?;
        // As long as anything moves: the whole of a checkpoint may take hours. What stands still is asked for again.
        let carries = client(builder, ClientConfigKey::Timeout, "24 hours");
        let carries = client(carries, ClientConfigKey::ReadTimeout, "30 seconds");
        let carries = carries.with_retry(CARRIES).build()?;
        let below = |client: AmazonS3| Arc::new(PrefixStore::new(client, prefix));
        Ok(Self {
            asks: below(asks),
            carries: below(carries),
        })
    }
}

/// What is wrong, and what can be done about it.
pub(crate) fn explain(error: &object_store::Error) -> (String, &'static str) {
    let mut deepest: &dyn StdError = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    let text = deepest.to_string();
    let Some(code) = tag(&text, "Code") else {
        return (
            text,
            "see that it is up and reached from here, and that `agent.checkpoints.s3_endpoint` and `s3_region` are its own",
        );
    };
    let fix = match code {
        "NoSuchBucket" => "make that bucket, or set `agent.checkpoints.store` to one that there is",
        "AccessDenied" => "let the agent's keys list, get, put and delete there",
        "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "InvalidToken"
        | "ExpiredToken"
        | "TokenRefreshRequired" => {
            "set `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` in the agent's environment to keys that are valid there"
        }
        "PermanentRedirect"
        | "AuthorizationHeaderMalformed"
        | "IllegalLocationConstraintException" => {
            "set `agent.checkpoints.s3_region` to that of the bucket"
        }
        _ => "it is asked again when the worker saves or loads again",
    };
    let message = tag(&text, "Message").unwrap_or_default();
    (format!("{code}: {message}"), fix)
}

/// What a tag of S3's XML says.
fn tag<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    Some(rest.split_once(&format!("</{name}>"))?.0)
}
