//! Requests about keys, one at a time, through the client library.
//!
//! Keeps: the client.
//! Order: none.
//! Crash: nothing.
//! Knows no names of objects, no envelope and no retries: each request is sent once and its fault told.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::list::{PaginatedListOptions, PaginatedListStore as _};
use object_store::multipart::{MultipartStore as _, PartId};
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, ListResult, ObjectStore as _, ObjectStoreExt as _, PutMode, PutPayload,
    RetryConfig, StaticCredentialProvider,
};

use super::credentials::{Credentials, KeyFile, of_environment};
use super::fault::{Fault, Kind};
use super::settings::{S3Settings, Style};
use super::transport::Transport;

/// A bucket's keys.
#[derive(Debug)]
pub(super) struct Objects {
    client: AmazonS3,
    /// The same, for multipart uploads of what must not be there yet.
    creating: AmazonS3,
}

/// Whether what is there stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    /// It stays, and the put fails.
    New,
    /// It is replaced.
    Over,
}

/// Bytes of an object.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) bytes: Bytes,
    /// Bytes of the whole object.
    pub(super) whole: u64,
}

/// A part of a listing.
#[derive(Debug)]
pub(super) struct Page {
    /// Keys, and with a delimiter what keys have in common up to it, sorted as the server has them.
    pub(super) keys: Vec<String>,
    /// Where the next part begins; `None`: this was the last.
    pub(super) next: Option<String>,
}

/// Which keys are listed.
#[derive(Debug, Clone)]
pub(super) struct Listing {
    pub(super) prefix: String,
    /// Only keys behind this one.
    pub(super) after: Option<String>,
    /// Keys in one folder are listed as that folder.
    pub(super) is_folders: bool,
    pub(super) at_once: usize,
}

impl Objects {
    /// # Errors
    /// There is no access key, or the library does not take the settings.
    pub(super) fn new(settings: &S3Settings, transport: &Transport) -> Result<Self, String> {
        let told = |error: object_store::Error| error.to_string();
        let client = builder(settings, transport.clone())?.build().map_err(told)?;
        // One source of keys for both: an instance's are fetched, and kept, once.
        let creating = builder(settings, transport.completing_new())?
            .with_credentials(Arc::clone(client.credentials()))
            .build()
            .map_err(told)?;
        Ok(Self { client, creating })
    }

    pub(super) async fn put(&self, key: &str, bytes: Bytes, put: Put) -> Result<(), Fault> {
        let mode = match put {
            Put::New => PutMode::Create,
            Put::Over => PutMode::Overwrite,
        };
        let done = self
            .client
            .put_opts(&path(key)?, PutPayload::from(bytes), mode.into())
            .await;
        done.map(drop).map_err(|error| Fault::of(&error))
    }

    /// At least one byte from `offset`, so that a key that is not there and a bucket that is not are told apart: what
    /// S3 answers to a `HEAD` has no body.
    pub(super) async fn get(&self, key: &str, offset: u64, length: u64) -> Result<Piece, Fault> {
        let range = offset..offset.saturating_add(length.max(1));
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            ..GetOptions::default()
        };
        let got = self.client.get_opts(&path(key)?, options).await;
        let got = got.map_err(|error| Fault::of(&error))?;
        let whole = got.meta.size;
        let bytes = got.bytes().await.map_err(|error| Fault::of(&error))?;
        Ok(Piece { bytes, whole })
    }

    pub(super) async fn delete(&self, key: &str) -> Result<(), Fault> {
        match self
            .client
            .delete(&path(key)?)
            .await
            .map_err(|error| Fault::of(&error))
        {
            Err(fault) if fault.kind == Kind::NoSuchKey => Ok(()),
            done => done,
        }
    }

    pub(super) async fn list(&self, listing: &Listing, from: Option<String>) -> Result<Page, Fault> {
        let options = PaginatedListOptions {
            offset: listing.after.clone(),
            delimiter: listing.is_folders.then_some(Cow::Borrowed("/")),
            max_keys: Some(listing.at_once),
            page_token: from,
            ..PaginatedListOptions::default()
        };
        let prefix = Some(listing.prefix.as_str()).filter(|prefix| !prefix.is_empty());
        let page = self.client.list_paginated(prefix, options).await;
        let page = page.map_err(|error| Fault::of(&error))?;
        Ok(Page {
            keys: keys(page.result),
            next: page.page_token,
        })
    }

    pub(super) async fn begin_parts(&self, key: &str) -> Result<String, Fault> {
        let id = self.client.create_multipart(&path(key)?).await;
        id.map_err(|error| Fault::of(&error))
    }

    pub(super) async fn put_part(
        &self,
        key: &str,
        id: &String,
        index: usize,
        bytes: Bytes,
    ) -> Result<PartId, Fault> {
        let part = self.client.put_part(&path(key)?, id, index, bytes.into()).await;
        part.map_err(|error| Fault::of(&error))
    }

    pub(super) async fn complete(
        &self,
        key: &str,
        id: &String,
        parts: Vec<PartId>,
        put: Put,
    ) -> Result<(), Fault> {
        let client = match put {
            Put::New => &self.creating,
            Put::Over => &self.client,
        };
        let done = client.complete_multipart(&path(key)?, id, parts).await;
        done.map(drop).map_err(|error| Fault::of(&error))
    }

    pub(super) async fn abort(&self, key: &str, id: &String) -> Result<(), Fault> {
        let done = self.client.abort_multipart(&path(key)?, id).await;
        done.map_err(|error| Fault::of(&error))
    }
}

fn keys(listed: ListResult) -> Vec<String> {
    let objects = listed.objects.into_iter().map(|object| object.location);
    listed
        .common_prefixes
        .into_iter()
        .chain(objects)
        .map(String::from)
        .collect()
}

fn builder(settings: &S3Settings, transport: Transport) -> Result<AmazonS3Builder, String> {
    let is_virtual_hosted = settings.style == Style::VirtualHosted;
    // The library appends the bucket in path style only.
    let endpoint = if is_virtual_hosted {
        settings.bucket_url()
    } else {
        settings.endpoint.clone()
    };
    let once = RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    };
    let builder = AmazonS3Builder::new()
        .with_bucket_name(&settings.bucket)
        .with_region(&settings.region)
        .with_endpoint(endpoint)
        .with_virtual_hosted_style_request(is_virtual_hosted)
        // TLS keeps the bytes whole on their way, and the envelope's checksums say so to whoever reads them.
        .with_unsigned_payload(settings.is_tls())
        // One request more would be needed to delete in bulk, with a header that not all servers agree on.
        .with_disable_bulk_delete(true)
        .with_retry(once)
        .with_http_connector(transport);
    Ok(match &settings.credentials {
        Credentials::Environment => {
            builder.with_credentials(Arc::new(StaticCredentialProvider::new(of_environment()?)))
        }
        Credentials::File { path, profile } => {
            builder.with_credentials(Arc::new(KeyFile::new(path.clone(), profile.clone())))
        }
        Credentials::InstanceProfile { endpoint: None } => builder,
        Credentials::InstanceProfile {
            endpoint: Some(endpoint),
        } => builder.with_metadata_endpoint(endpoint),
    })
}

/// Our keys are plain, so that the library has nothing to encode.
fn path(key: &str) -> Result<Path, Fault> {
    Path::parse(key).map_err(|error| Fault::new(Kind::Denied, format!("key {key:?}: {error}")))
}
