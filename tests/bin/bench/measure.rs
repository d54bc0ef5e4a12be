//! What a server takes: processor time, anonymous memory, and the kernel's memory for TCP.

use std::fs;

/// Processor seconds of processes so far, in user and kernel. Clock ticks are hundredths of a second on Linux.
pub(crate) fn cpu_seconds(pids: &[u32]) -> f64 {
    let ticks: u64 = pids.iter().filter_map(|pid| ticks(*pid)).sum();
    ticks as f64 / 100.0
}

fn ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// Anonymous memory of processes in bytes; mapped files are not theirs alone.
pub(crate) fn anonymous_bytes(pids: &[u32]) -> u64 {
    let kib = pids.iter().filter_map(|pid| {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = rollup.lines().find(|line| line.starts_with("Anonymous:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    kib.sum::<u64>() * 1024
}

/// The kernel's memory for TCP, of both ends.
pub(crate) fn tcp_bytes() -> u64 {
    let text = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    let line = text
        .lines()
        .find(|line| line.starts_with("TCP:"))
        .unwrap_or_default();
    let pages = line
        .split_whitespace()
        .last()
        .and_then(|pages| pages.parse().ok());
    pages.unwrap_or(0_u64) * 4096
}

/// A process and its children.
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    std::iter::once(pid).chain(children).collect()
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
