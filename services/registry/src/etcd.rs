//! The etcd home.
//!
//! Keeps: the connections, and how our requests are etcd's: a commit is a transaction that compares
//! `mod_revision`s, a revision is etcd's, a lease is etcd's.
//! Order: etcd's: linearizable reads, transactions one after the other.
//! Crash: etcd's: an acknowledged transaction is on a majority of its members. A lost answer is `Unknown`.
//! Knows no bus. All of it runs on a thread of its own, since a handle is used from many and the connection's
//! tasks live on the runtime that made it.

mod endpoints;
mod errors;
mod keys;
mod members;
mod watch;

use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, GetOptions, PutOptions, Txn, TxnOp, TxnOpResponse,
    TxnResponse,
};
use sconce_bus::TlsSettings;
use sconce_schemas::wire::registry::{Change, LeaseId, Revision};

use self::errors::{Failure, Named};
use self::keys::Keys;
use self::members::{Asked, Members, Twice};
use crate::home::{Answer, Found, Home, Page};
use crate::own_runtime::OwnRuntime;
use crate::{CommitError, OpenError, RegistryError, Watched};

/// How long a request may take: longer than etcd takes to elect a new leader.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long a connection may take to be made, and how often an idle one is checked.
const CONNECT: Duration = Duration::from_secs(3);
const CHECK: Duration = Duration::from_secs(5);

/// Connections to etcd.
pub(crate) struct Etcd {
    members: Members,
    keys: Keys,
    named: Named,
    runtime: OwnRuntime,
}

impl Etcd {
    /// Connects, and sees whether etcd answers. Every key is stored below `prefix`.
    pub(crate) async fn connect(
        endpoints: &[String],
        prefix: &str,
        tls: Option<&TlsSettings>,
    ) -> Result<Self, OpenError> {
        let keys = Keys::new(prefix)?;
        let tls = endpoints::check(endpoints, tls)?;
        let unanswered = |detail: String| OpenError::Etcd {
            endpoints: endpoints.to_vec(),
            detail,
        };
        let runtime = OwnRuntime::start("registry-etcd").map_err(OpenError::Thread)?;
        let tried = endpoints.to_vec();
        let connecting = runtime.run(async move {
            let mut options = ConnectOptions::new()
                .with_connect_timeout(CONNECT)
                .with_keep_alive(CHECK, CONNECT)
                .with_require_leader(true);
            if let Some(tls) = tls {
                options = options.with_tls(tls);
            }
            let members = Members::connect(&tried, &options).await?;
            let probed = members.clone().ask(Twice::Harmless, |mut client| {
                Box::pin(async move { client.get(keys::PROBE, None).await })
            });
            probed.await.answer?;
            Ok::<_, Failure>(members)
        });
        let members = match connecting.await {
            Some(Ok(members)) => members,
            Some(Err(failure)) => return Err(unanswered(failure.to_string())),
            None => return Err(unanswered("its thread ended".to_owned())),
        };
        Ok(Self {
            members,
            keys,
            named: Named::new(endpoints),
            runtime,
        })
    }

    /// Runs a request on the connections' own thread, within the deadline.
    async fn ask<T: Send + 'static, A>(
        &self,
        twice: Twice,
        request: impl Fn(Client) -> A + Send + 'static,
    ) -> Asked<T>
    where
        A: Future<Output = Result<T, etcd_client::Error>> + Send + 'static,
    {
        let asking = self
            .members
            .clone()
            .ask(twice, move |client| Box::pin(request(client)));
        let asked = self.runtime.run(asking).await;
        asked.unwrap_or_else(|| Asked::unknown(Failure::ended()))
    }

    async fn read(&self, key: Vec<u8>, options: GetOptions) -> Result<etcd_client::GetResponse, Failure> {
        let read = move |mut client: Client| {
            let (key, options) = (key.clone(), options.clone());
            async move { client.get(key, Some(options)).await }
        };
        self.ask(Twice::Harmless, read).await.answer
    }

    /// A page, with fewer entries where that many are more than a message takes.
    async fn read_page(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, Failure> {
        let (start, end) = self.keys.range(prefix, after);
        let mut limit = i64::try_from(limit).unwrap_or(i64::MAX);
        loop {
            let options = GetOptions::new().with_range(end.clone()).with_limit(limit);
            match self.read(start.clone(), options).await {
                Ok(mut found) => {
                    let revision = revision_of(found.header());
                    let kvs = found.take_kvs();
                    return Ok(Page {
                        more: found.more(),
                        entries: kvs.into_iter().filter_map(|kv| self.keys.entry(kv)).collect(),
                        revision,
                    });
                }
                Err(failure) if failure.is_too_large() && limit > 1 => limit /= 2,
                Err(failure) => return Err(failure),
            }
        }
    }

    fn transaction(&self, changes: &[Change]) -> Txn {
        let mut compares = Vec::new();
        let mut looks = Vec::new();
        let mut operations = Vec::new();
        for change in changes {
            let key = self.keys.stored(&change.key);
            if let Some(expected) = change.expected {
                compares.push(Compare::mod_revision(
                    key.clone(),
                    CompareOp::Equal,
                    to_i64(expected.0),
                ));
                looks.push(TxnOp::get(key.clone(), Some(GetOptions::new().with_keys_only())));
            }
            operations.push(match &change.value {
                Some(value) => {
                    let lease = change.lease.map_or(0, |lease| to_i64(lease.0));
                    TxnOp::put(key, value.clone(), Some(PutOptions::new().with_lease(lease)))
                }
                None => TxnOp::delete(key, None),
            });
        }
        Txn::new().when(compares).and_then(operations).or_else(looks)
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, Failure> {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        // One that is granted twice, and that nobody knows of, ends by itself.
        let grant = move |mut client: Client| async move { client.lease_grant(to_i64(seconds), None).await };
        let granted = self.ask(Twice::Harmless, grant).await.answer?;
        Ok(LeaseId(to_u64(granted.id())))
    }
}

impl Home for Etcd {
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Found> {
        Box::pin(async move {
            let found = self.read(self.keys.stored(key), GetOptions::new()).await;
            let mut found = found.map_err(|failure| self.named.unavailable(failure))?;
            Ok(Found {
                revision: revision_of(found.header()),
                entry: found.take_kvs().pop().and_then(|kv| self.keys.entry(kv)),
            })
        })
    }

    fn page<'a>(&'a self, prefix: &'a str, after: Option<&'a str>, limit: usize) -> Answer<'a, Page> {
        Box::pin(async move {
            let page = self.read_page(prefix, after, limit).await;
            page.map_err(|failure| self.named.unavailable(failure))
        })
    }

    fn commit(&self, changes: Vec<Change>) -> Answer<'_, Revision, CommitError> {
        Box::pin(async move {
            let transaction = self.transaction(&changes);
            let twice = match changes.iter().any(is_guarded) {
                true => Twice::Harmless,
                false => Twice::No,
            };
            let commit = move |mut client: Client| {
                let transaction = transaction.clone();
                async move { client.txn(transaction).await }
            };
            let Asked { answer, may_be_done } = self.ask(twice, commit).await;
            let answer = answer.map_err(|failure| match may_be_done {
                // Whatever the last member says, an earlier one may have done it.
                true => self.named.unknown(failure),
                false => self.named.commit_error(failure, &changes),
            })?;
            if answer.succeeded() {
                return Ok(revision_of(answer.header()));
            }
            if may_be_done {
                // The conflict may be with what another member made of this very commit.
                let text = "put to more than one member, of which one had done it, or somebody else had changed a key";
                return Err(self.named.unknown(Failure::other(text.to_owned())));
            }
            Err(conflict(&changes, &answer))
        })
    }

    fn watch<'a>(&'a self, prefix: &'a str, after: Revision, wait: Duration) -> Answer<'a, Watched> {
        Box::pin(async move {
            let watch = watch::Watch::new(self.members.current(), self.keys.clone(), prefix, after);
            let watched = match self.runtime.run(watch.wait(wait)).await {
                Some(watched) => watched,
                None => Err(Failure::ended()),
            };
            watched.map_err(|failure| self.named.unavailable(failure))
        })
    }

    fn grant(&self, ttl: Duration) -> Answer<'_, LeaseId> {
        Box::pin(async move {
            let granted = self.grant_lease(ttl).await;
            granted.map_err(|failure| self.named.unavailable(failure))
        })
    }

    fn keep_alive(&self, lease: LeaseId) -> Answer<'_, ()> {
        Box::pin(async move {
            let keep = move |mut client: Client| async move {
                client.lease_keep_alive(to_i64(lease.0)).await.map(drop)
            };
            let kept = self.ask(Twice::Harmless, keep).await.answer;
            kept.map_err(|failure| self.named.lease_error(failure, lease))
        })
    }

    fn revoke(&self, lease: LeaseId) -> Answer<'_, ()> {
        Box::pin(async move {
            let revoke =
                move |mut client: Client| async move { client.lease_revoke(to_i64(lease.0)).await.map(drop) };
            let revoked = self.ask(Twice::Harmless, revoke).await.answer;
            match revoked.map_err(|failure| self.named.lease_error(failure, lease)) {
                Err(RegistryError::LeaseGone { .. }) => Ok(()),
                outcome => outcome,
            }
        })
    }
}

/// Whether a commit with this change, once done, cannot be done again: the key is not at the expected revision any more.
fn is_guarded(change: &Change) -> bool {
    change
        .expected
        .is_some_and(|expected| change.value.is_some() || expected != Revision::ABSENT)
}

/// The first change whose key is not at its expected revision.
fn conflict(changes: &[Change], answer: &TxnResponse) -> CommitError {
    let found = answer.op_responses().into_iter().map(|response| match response {
        TxnOpResponse::Get(found) => found.kvs().first().map_or(0, |kv| to_u64(kv.mod_revision())),
        _ => 0,
    });
    let compared = changes
        .iter()
        .filter_map(|change| Some((change, change.expected?)));
    let differing = compared
        .zip(found)
        .find(|((_, expected), found)| expected.0 != *found);
    let (key, found) = differing.map_or_else(Default::default, |((change, _), found)| {
        (change.key.clone(), found)
    });
    let found = Revision(found);
    CommitError::Conflict { key, found }
}

fn revision_of(header: Option<&etcd_client::ResponseHeader>) -> Revision {
    Revision(header.map_or(0, |header| to_u64(header.revision())))
}

/// etcd counts in `i64` and never gives a negative number.
fn to_u64(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn to_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
