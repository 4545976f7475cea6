//! Owners, storage-routers and the registry, and what they do wrong.

use super::*;

impl World {
    /// A node takes in a request: one that is on its way, or one of a lost connection.
    pub(super) fn serve_one(&mut self) {
        if !self.ghosts.is_empty() && self.chance.one_of(1, 3) {
            let at = self.below(self.ghosts.len());
            let ghost = self.ghosts.swap_remove(at);
            // It was taken in before the loss was noticed: applied if it is new, as any owner would.
            if let (VolumeRequest::Io(io), Some((index, session))) = (&ghost.request, ghost.target) {
                self.apply_once(index, session, io, &ghost.data);
            }
            return;
        }
        if self.flying.is_empty() {
            return;
        }
        let at = self.below(self.flying.len());
        let flying = if self.chance.one_of(self.rough.duplicate, 1000) {
            self.flying[at].clone()
        } else {
            self.flying.swap_remove(at)
        };
        if let (Some(reply), data) = self.serve(&flying) {
            self.answers.push(Answer { flying, reply, data });
        }
    }

    pub(super) fn apply_once(&mut self, index: usize, session: SessionId, io: &IoRequest, data: &Bytes) {
        let volume = &mut self.volumes[index];
        let (applied, below) = volume.sessions.entry(session).or_default();
        *below = (*below).max(io.below);
        if !io.code.changes() || io.number < *below || !applied.insert(io.number) {
            return;
        }
        let first = usize::try_from(io.offset).unwrap() / CLUSTER_LEN;
        let count = usize::try_from(io.length).unwrap() / CLUSTER_LEN;
        for at in 0..count {
            let content = match io.code {
                IoCode::Write => data[at * CLUSTER_LEN..at * CLUSTER_LEN + 8].try_into().unwrap(),
                _ => [0; 8],
            };
            volume.clusters[first + at] = content;
        }
    }

    pub(super) fn serve(&mut self, flying: &Flying) -> (Option<VolumeReply>, Bytes) {
        let none = Bytes::new();
        let Some(link) = self.links.get(&flying.link.0) else {
            return (None, none);
        };
        let node = link.node;
        let refused = |refusal| (Some(VolumeReply::Refused(refusal)), Bytes::new());
        let not_owner = || Refusal::reroute(RefusalCode::NotOwner, "not the owner");
        match &flying.request {
            VolumeRequest::Control(VolumeControl::Open {
                volume,
                session,
                snapshot,
                ..
            }) => {
                let is_asked_for = |v: &Volume| v.id == *volume && v.of.is_some() == snapshot.is_some();
                let index = self.volumes.iter().position(is_asked_for).unwrap();
                let owner = self.served_with(index);
                if self.volumes[owner].owner != node {
                    return refused(not_owner());
                }
                if self.chance.one_of(self.rough.refuse, 1000) {
                    return refused(Refusal::retry(RefusalCode::Unavailable, "recovering"));
                }
                let handle = self.next_handle;
                self.next_handle += 1;
                let epoch = Epoch(self.volumes[owner].epoch);
                let named = self.volumes[index].named;
                if let Some(name) = snapshot {
                    assert_eq!(name, SNAPSHOT.0);
                    if named.is_none() {
                        return refused(Refusal::reject(RefusalCode::NotFound, "no such snapshot"));
                    }
                }
                let link = self.links.get_mut(&flying.link.0).unwrap();
                link.handles.insert(handle, (index, *session));
                if named == Some(SNAPSHOT.1) {
                    link.on_snapshot.insert(handle);
                }
                let opened = VolumeControlReply::Opened {
                    handle,
                    epoch,
                    size: VolumeSize::new((CLUSTERS * CLUSTER_LEN) as u64).unwrap(),
                    read_only: snapshot.is_some(),
                    snapshot: named,
                    access: None,
                };
                (Some(VolumeReply::Control(opened)), none)
            }
            VolumeRequest::Control(_) => (Some(VolumeReply::Control(VolumeControlReply::Done)), none),
            VolumeRequest::Twin(_) => panic!("an fs-router has no twins"),
            VolumeRequest::Io(io) => {
                let Some(&(index, session)) = link.handles.get(&io.handle) else {
                    return refused(Refusal::reroute(RefusalCode::NotOpen, "not open"));
                };
                if self.volumes[self.served_with(index)].owner != node {
                    return refused(not_owner());
                }
                if self.volumes[index].of.is_some() {
                    assert!(!io.code.changes(), "a change of a snapshot was sent");
                    assert!(
                        link.on_snapshot.contains(&io.handle),
                        "a snapshot that only has the same name is read"
                    );
                    if self.volumes[index].named != Some(SNAPSHOT.1) {
                        return refused(Refusal::reject(RefusalCode::NotFound, "the snapshot was removed"));
                    }
                }
                if self.chance.one_of(self.rough.refuse, 1000) {
                    let refusal = match self.chance.below(3) {
                        0 => Refusal::retry(RefusalCode::Unavailable, "busy"),
                        1 => Refusal::reject(RefusalCode::WaitsForOwner, "waits"),
                        _ => not_owner(),
                    };
                    return refused(refusal);
                }
                self.apply_once(index, session, io, &flying.data);
                match io.code {
                    IoCode::Read => self.read(index, io),
                    _ => (Some(VolumeReply::Done), none),
                }
            }
        }
    }

    pub(super) fn read(&mut self, index: usize, io: &IoRequest) -> (Option<VolumeReply>, Bytes) {
        let first = usize::try_from(io.offset).unwrap() / CLUSTER_LEN;
        let last = usize::try_from(io.offset + io.length)
            .unwrap()
            .div_ceil(CLUSTER_LEN);
        let (mut extents, mut data) = (Vec::new(), Vec::new());
        for at in first..last {
            let content = self.volumes[index].clusters[at];
            let length = u32::try_from(CLUSTER_LEN).unwrap();
            if content == [0; 8] && self.chance.one_of(1, 2) {
                extents.push(ReadExtent::Zeros { length });
            } else if self.chance.one_of(self.rough.located, 1000) {
                extents.push(self.store(index, content));
            } else {
                extents.push(ReadExtent::Data { length });
                data.extend(cluster_of(content));
            }
        }
        (Some(VolumeReply::Read(extents)), data.into())
    }

    /// Puts a cluster into an object of its own.
    pub(super) fn store(&mut self, index: usize, content: [u8; 8]) -> ReadExtent {
        // A clone's cluster may be its ancestor's.
        let ancestor = VolumeId([9; 16]);
        let volume = if self.chance.one_of(1, 3) {
            ancestor
        } else {
            self.volumes[index].id
        };
        let stored = self.stored.get(&(volume, content)).copied();
        let again = stored.filter(|_| self.rough.cached.is_some());
        let (sco, epoch) = (again.unwrap_or(ScoId(self.next_object)), Epoch(1));
        self.next_object += 1;
        self.stored.insert((volume, content), sco);
        let cluster = cluster_of(content);
        let crc = crc32c(&cluster);
        let name = ObjectName::Sco {
            volume,
            id: sco,
            epoch,
            version: 0,
        };
        self.objects.insert(name, cluster);
        ReadExtent::Located {
            volume,
            sco,
            epoch,
            version: 0,
            first_slot: Slot(5),
            crcs: vec![crc],
        }
    }

    pub(super) fn serve_fetch(&mut self) {
        if self.fetches.is_empty() {
            return;
        }
        let at = self.below(self.fetches.len());
        let (link, id, request) = self.fetches.swap_remove(at);
        let StorageRequest::Get {
            pool,
            name,
            offset,
            length,
            cached: true,
        } = request
        else {
            panic!("{request:?}");
        };
        assert_eq!((pool.as_str(), length as usize), ("pool-1", CLUSTER_LEN));
        assert_eq!(offset, ScoSize::default().slot_offset(Slot(5)));
        let mut bytes = self.objects[&name].clone();
        let mut reply = StorageReply::Data;
        // At most one kind of trouble each, and rarely: more than the core takes would be damage indeed.
        if self.chance.one_of(self.rough.storage_trouble, 1000) {
            match self.chance.below(40) {
                0 => bytes[17] ^= 1,
                1 => reply = StorageReply::Refused(Refusal::reject(RefusalCode::NotFound, "gone")),
                _ => reply = StorageReply::Refused(Refusal::retry(RefusalCode::Unavailable, "busy")),
            }
        }
        if reply != StorageReply::Data {
            bytes.clear();
        }
        self.apply(Event::StorageReplied {
            link,
            id,
            reply,
            data: bytes.into(),
        });
    }

    pub(super) fn answer_one(&mut self) {
        if self.answers.is_empty() {
            return;
        }
        let at = self.below(self.answers.len());
        let answer = self.answers.swap_remove(at);
        let Answer { flying, reply, data } = answer;
        let Some(link) = self.links.get(&flying.link.0) else {
            return;
        };
        if !link.up || link.incarnation != flying.incarnation {
            return;
        }
        let is_first = self.answered.insert(flying.id);
        match (&reply, &flying.request) {
            (VolumeReply::Control(VolumeControlReply::Opened { handle, .. }), _) => {
                self.may_send.insert((flying.link, *handle), true);
            }
            // From here on the core knows that this owner refused. (Of an abandoned read it does not take the answer.)
            (VolumeReply::Refused(refusal), VolumeRequest::Io(io))
                if is_first && io.code.changes() && refusal.remedy == Remedy::Reroute =>
            {
                self.may_send.insert((flying.link, io.handle), false);
            }
            _ => {}
        }
        let (link, id) = (flying.link, flying.id);
        self.apply(Event::OwnerReplied {
            link,
            id,
            reply,
            data,
        });
    }

    pub(super) fn look_up_one(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let at = self.below(self.pending.len());
        match self.pending.swap_remove(at) {
            Effect::FindOwner { session, volume } => {
                let index = self.volumes.iter().position(|v| v.id == volume).unwrap();
                let node = if self.rough.refuse > 0 && self.chance.one_of(1, 5) {
                    self.below(NODES)
                } else {
                    self.volumes[index].owner
                };
                let routed = if self.chance.one_of(self.rough.refuse, 1000) {
                    Routed::Unknown("the registry does not answer".to_owned())
                } else {
                    Routed::At {
                        endpoint: format!("node-{node}"),
                        writer: writer(),
                    }
                };
                self.apply(Event::Routed { session, routed });
            }
            Effect::FindWriter { volume } => {
                let writer = if self.chance.one_of(self.rough.refuse, 1000) {
                    Err("the registry does not answer".to_owned())
                } else {
                    Ok(Some(writer()))
                };
                self.apply(Event::WriterFound { volume, writer });
            }
            Effect::FindStorage => {
                let endpoints = vec!["storage-1".to_owned(), "storage-2".to_owned()];
                self.apply(Event::StorageFound { endpoints });
            }
            _ => {}
        }
    }
}

fn writer() -> Writer {
    Writer {
        pool: "pool-1".to_owned(),
        sco_size: ScoSize::default(),
        is_cacheable: true,
    }
}
