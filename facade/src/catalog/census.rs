//! What is counted of the fleet, kept as it changes: how many devices have which standing, run what they should, or
//! refuse something. A question is answered from memory, never by reading the fleet's records.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{PoisonError, RwLock};

use pki::oci::ArtifactName;
use pki::wire::Report;
use pki::x509::DeviceId;

use super::devices::Standing;

/// Something that can be counted, and listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mark {
    /// It has this standing.
    Standing(Standing),
    /// It is active, has reported, and runs what it should.
    UpToDate,
    /// It is active, and its newest report refuses something.
    Refuses,
}

/// The marks of every device.
#[derive(Default)]
pub struct Census(RwLock<State>);

#[derive(Default)]
struct State {
    lines: HashMap<DeviceId, Line>,
    marks: BTreeMap<Mark, BTreeSet<DeviceId>>,
    /// Who says that it runs an artifact.
    running: HashMap<ArtifactName, BTreeSet<DeviceId>>,
}

#[derive(Default)]
struct Line {
    standing: Option<Standing>,
    wanted: BTreeSet<ArtifactName>,
    report: Option<Reported>,
    marks: BTreeSet<Mark>,
}

/// What counts of a report.
struct Reported {
    running: BTreeSet<ArtifactName>,
    refuses: bool,
}

impl Line {
    fn marks(&self) -> BTreeSet<Mark> {
        let mut marks: BTreeSet<Mark> = self.standing.map(Mark::Standing).into_iter().collect();
        if self.standing == Some(Standing::Active)
            && let Some(report) = &self.report
        {
            if self.wanted.is_subset(&report.running) {
                marks.insert(Mark::UpToDate);
            }
            if report.refuses {
                marks.insert(Mark::Refuses);
            }
        }
        marks
    }
}

impl State {
    /// Takes over what a device says that it runs.
    fn run(&mut self, id: &DeviceId, before: &BTreeSet<ArtifactName>, now: &BTreeSet<ArtifactName>) {
        for lost in before.difference(now) {
            if let Some(devices) = self.running.get_mut(lost) {
                devices.remove(id);
                if devices.is_empty() {
                    self.running.remove(lost);
                }
            }
        }
        for gained in now.difference(before) {
            self.running.entry(gained.clone()).or_default().insert(id.clone());
        }
    }

    fn runs(&self, id: &DeviceId) -> BTreeSet<ArtifactName> {
        let reported = self.lines.get(id).and_then(|line| line.report.as_ref());
        reported.map(|report| report.running.clone()).unwrap_or_default()
    }

    fn change(&mut self, id: &DeviceId, change: impl FnOnce(&mut Line)) {
        let line = self.lines.entry(id.clone()).or_default();
        change(line);
        let marks = line.marks();
        for lost in line.marks.difference(&marks) {
            if let Some(devices) = self.marks.get_mut(lost) {
                devices.remove(id);
            }
        }
        for gained in marks.difference(&line.marks) {
            self.marks.entry(*gained).or_default().insert(id.clone());
        }
        line.marks = marks;
    }
}

impl Census {
    /// Takes over a device's standing and what it should have.
    pub fn set_device(&self, id: &DeviceId, standing: Standing, wanted: BTreeSet<ArtifactName>) {
        self.write().change(id, |line| (line.standing, line.wanted) = (Some(standing), wanted));
    }

    /// Takes over a device's newest report. One of a device that is not known is passed over.
    pub fn set_report(&self, report: &Report) {
        let running: BTreeSet<_> = report.running.iter().map(|running| running.artifact.clone()).collect();
        let reported = Reported { running, refuses: !report.refused.is_empty() };
        let mut state = self.write();
        if state.lines.contains_key(&report.device) {
            let before = state.runs(&report.device);
            state.run(&report.device, &before, &reported.running);
            state.change(&report.device, |line| line.report = Some(reported));
        }
    }

    /// Forgets a device.
    pub fn remove(&self, id: &DeviceId) {
        let mut state = self.write();
        let before = state.runs(id);
        state.run(id, &before, &BTreeSet::new());
        state.change(id, |line| *line = Line { marks: std::mem::take(&mut line.marks), ..Line::default() });
        state.lines.remove(id);
    }

    /// How many devices carry a mark.
    pub fn count(&self, mark: Mark) -> usize {
        self.read().marks.get(&mark).map_or(0, BTreeSet::len)
    }

    /// A page of the devices that carry a mark, by id.
    pub fn with(&self, mark: Mark, after: Option<&DeviceId>, limit: usize) -> Vec<DeviceId> {
        let state = self.read();
        let Some(devices) = state.marks.get(&mark) else {
            return Vec::new();
        };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        devices.range::<DeviceId, _>((from, Bound::Unbounded)).take(limit).cloned().collect()
    }

    /// How many devices say that they run an artifact.
    pub fn running(&self, artifact: &ArtifactName) -> usize {
        self.read().running.get(artifact).map_or(0, BTreeSet::len)
    }

    /// A page of the devices that say that they run an artifact, by id.
    pub fn running_on(
        &self,
        artifact: &ArtifactName,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Vec<DeviceId> {
        let state = self.read();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let devices = state.running.get(artifact).into_iter();
        devices
            .flat_map(|devices| devices.range::<DeviceId, _>((from, Bound::Unbounded)))
            .take(limit)
            .cloned()
            .collect()
    }

    /// Whether a device carries a mark.
    pub fn has(&self, id: &DeviceId, mark: Mark) -> bool {
        self.read().marks.get(&mark).is_some_and(|devices| devices.contains(id))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
