//! All objects of a pool, a listing at a time.
//!
//! Keeps: how far it is.
//! Order: volume by volume, kind by kind, in the order of the names: so the last name says where to go on.
//! Crash: whoever remembers the last name goes on there. What came in between behind it is left out.
//! Knows no kind of back end.

use std::collections::VecDeque;

use sconce_schemas::object::ObjectKind;
use sconce_schemas::wire::Refusal;
use sconce_schemas::{ObjectName, VolumeId};

use super::{Page, Pool};

/// Names, or volumes, of one listing.
const LISTED_AT_ONCE: usize = 1000;

/// How far it is.
#[derive(Debug, Default)]
pub struct Walk {
    /// The volume and the kind that are listed, and the last name of them; `None`: the first volume is next.
    at: Option<(VolumeId, ObjectKind, Option<ObjectName>)>,
    /// Volumes that were listed and come next.
    volumes: VecDeque<VolumeId>,
    /// No others come after those.
    are_all: bool,
    is_over: bool,
}

/// The next objects of a walk, all of one volume.
pub struct Batch {
    page: Page<ObjectName>,
}

impl Walk {
    /// From the name after this one on.
    #[must_use]
    pub fn after(name: Option<ObjectName>) -> Self {
        Self {
            at: name.map(|name| (name.volume(), name.kind(), Some(name))),
            ..Self::default()
        }
    }

    /// The next objects; `None`: there are no more.
    ///
    /// # Errors
    /// A retry when so many back ends are absent that nothing can be told, or when the pool goes on by a newer record.
    pub async fn next(&mut self, pool: &Pool) -> Result<Option<Batch>, Refusal> {
        let page = pool.walk(self).await?;
        Ok(page.map(|page| Batch { page }))
    }
}

impl Batch {
    /// Whose objects they are.
    #[must_use]
    pub fn volume(&self) -> Option<VolumeId> {
        self.page.names.first().map(|(name, _)| name.volume())
    }

    /// The objects, in order.
    pub fn names(&self) -> impl Iterator<Item = ObjectName> {
        self.page.names.iter().map(|(name, _)| *name)
    }

    /// Back ends that did not list theirs.
    #[must_use]
    pub fn absent(&self) -> &[usize] {
        &self.page.absent
    }

    /// The back ends that list an object.
    pub(super) fn seen(&self, name: ObjectName) -> &[usize] {
        let at = self.page.names.binary_search_by(|(listed, _)| listed.cmp(&name));
        at.ok()
            .and_then(|at| self.page.names.get(at))
            .map_or(&[], |(_, seen)| seen)
    }

    /// Whether so little is there of an object that it is of a put which was never answered for.
    pub(super) fn is_of_no_put(&self, pool: &Pool, name: ObjectName) -> bool {
        let needed = pool.coded.as_ref().map_or(1, |coded| coded.needed());
        self.seen(name).len() + self.page.absent.len() < needed
    }
}

const fn next_kind(kind: ObjectKind) -> Option<ObjectKind> {
    match kind {
        ObjectKind::Sco => Some(ObjectKind::Map),
        ObjectKind::Map => Some(ObjectKind::Manifest),
        ObjectKind::Manifest => None,
    }
}

impl Pool {
    /// The next names, with the back ends that list them; `None`: there are no more.
    ///
    /// # Errors
    /// As [`Walk::next`].
    async fn walk(&self, walk: &mut Walk) -> Result<Option<Page<ObjectName>>, Refusal> {
        while !walk.is_over {
            if self.is_superseded() {
                return Err(self.superseded());
            }
            let Some((volume, kind, after)) = walk.at else {
                self.walk_on(walk, None).await?;
                continue;
            };
            let what = format!("the {} objects of volume {volume}", kind.as_str());
            let page = self.merged(&what, self.quorum, LISTED_AT_ONCE, |backend| async move {
                backend.list(volume, kind, after, LISTED_AT_ONCE).await
            });
            let page = page.await?;
            match (page.names.last(), next_kind(kind)) {
                (Some((last, _)), _) if page.names.len() == LISTED_AT_ONCE => {
                    walk.at = Some((volume, kind, Some(*last)));
                }
                (_, Some(next)) => walk.at = Some((volume, next, None)),
                (_, None) => self.walk_on(walk, Some(volume)).await?,
            }
            if !page.names.is_empty() {
                return Ok(Some(page));
            }
        }
        Ok(None)
    }

    /// To the volume after this one.
    async fn walk_on(&self, walk: &mut Walk, after: Option<VolumeId>) -> Result<(), Refusal> {
        if walk.volumes.is_empty() && !walk.are_all {
            let listed = self.list_volumes(after, LISTED_AT_ONCE).await?;
            walk.are_all = listed.len() < LISTED_AT_ONCE;
            walk.volumes.extend(listed);
        }
        let next = walk.volumes.pop_front();
        walk.at = next.map(|volume| (volume, ObjectKind::Sco, None));
        walk.is_over = walk.at.is_none();
        Ok(())
    }

    /// How many objects there are of volumes that are the pool's.
    ///
    /// # Errors
    /// A retry when so many back ends are absent that nothing can be told; what `is_mine` says.
    pub async fn count(
        &self,
        is_mine: impl AsyncFn(VolumeId) -> Result<bool, Refusal>,
    ) -> Result<u64, Refusal> {
        let (mut walk, mut count) = (Walk::default(), 0);
        while let Some(batch) = walk.next(self).await? {
            if let Some(volume) = batch.volume()
                && is_mine(volume).await?
            {
                count += batch.page.names.len() as u64;
            }
        }
        Ok(count)
    }
}
