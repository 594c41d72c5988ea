//! What a person sees while the demo runs.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use crossterm::{QueueableCommand, cursor, style, terminal};

use super::scene::{DestinationState, Kill, Scene, name_of};

/// A picture that is drawn again and again, a line a second, or nothing.
#[derive(Debug)]
pub(crate) enum View {
    Live { lines: u16, next: Instant },
    Plain { next: Instant, kills_told: usize, recoveries_told: usize },
    Silent,
}

const REDRAW: Duration = Duration::from_millis(200);
const LINE: Duration = Duration::from_secs(1);
const BAR_CHARS: usize = 30;
/// The numbers of a process stand below its name, so that 80 columns suffice.
const INDENT: &str = "               ";

impl View {
    pub(crate) fn new(plain: bool, silent: bool) -> View {
        let next = Instant::now();
        if silent {
            View::Silent
        } else if plain || !io::stdout().is_terminal() {
            View::Plain { next, kills_told: 0, recoveries_told: 0 }
        } else {
            View::Live { lines: 0, next }
        }
    }

    pub(crate) fn draw(&mut self, scene: &Scene) -> io::Result<()> {
        let now = Instant::now();
        match self {
            View::Live { lines, next } if now >= *next => {
                *next = now + REDRAW;
                let text = picture(scene);
                *lines = redraw(&text, *lines)?;
                Ok(())
            }
            View::Plain { next, kills_told, recoveries_told } => {
                for kill in scene.kills.iter().skip(*kills_told) {
                    println!("{}", kill_line(kill));
                    *kills_told += 1;
                }
                let recovered = || scene.kills.iter().filter(|kill| kill.equal_again.is_some());
                for kill in recovered().skip(*recoveries_told) {
                    println!("{}", recovery_line(kill));
                    *recoveries_told += 1;
                }
                if now >= *next && scene.loaded {
                    *next = now + LINE;
                    println!("{}", plain_line(scene));
                }
                Ok(())
            }
            View::Live { .. } | View::Silent => Ok(()),
        }
    }

    /// Ends the picture; what follows is printed below it.
    pub(crate) fn close(&mut self) -> io::Result<()> {
        if let View::Live { .. } = self {
            println!();
        }
        io::stdout().flush()
    }
}

/// 1234567 as "1,234,567".
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| str::from_utf8(group).unwrap_or("")).collect();
    groups.join(",")
}

/// A latency in the unit that fits.
pub(crate) fn duration(ns: u64) -> String {
    match ns {
        0..10_000 => format!("{ns} ns"),
        10_000..10_000_000 => format!("{} us", ns / 1000),
        _ => format!("{} ms", ns / 1_000_000),
    }
}

fn redraw(text: &str, before: u16) -> io::Result<u16> {
    let width = usize::from(terminal::size().map_or(80, |(columns, _)| columns));
    let mut out = io::stdout().lock();
    if before > 0 {
        out.queue(cursor::MoveToPreviousLine(before))?;
    }
    out.queue(terminal::Clear(terminal::ClearType::FromCursorDown))?;
    let mut lines = 0;
    for line in text.lines() {
        let cut: String = line.chars().take(width.saturating_sub(1)).collect();
        out.queue(style::Print(cut))?.queue(style::Print("\n"))?;
        lines += 1;
    }
    out.flush()?;
    Ok(lines)
}

fn picture(scene: &Scene) -> String {
    let mut text = String::new();
    let (elapsed, length) = (scene.elapsed(), scene.length);
    let part = (elapsed.as_secs_f64() / length.as_secs_f64()).min(1.0);
    let done = if scene.loaded { (part * BAR_CHARS as f64) as usize } else { 0 };
    let what = match (scene.loaded, elapsed < length) {
        (false, _) => "loading".to_string(),
        (true, true) => format!("{:.1} of {} s", elapsed.as_secs_f64(), length.as_secs()),
        (true, false) => "comparing every item".to_string(),
    };
    let bar = format!("{}{}", "=".repeat(done), " ".repeat(BAR_CHARS - done));
    let _ =
        writeln!(text, "live kernel state in {} processes  [{bar}]  {what}\n", scene.destinations.len() + 1);
    let report = &scene.source.report;
    let _ = writeln!(
        text,
        "source         pid {:<8} {:>11} items, {} of them the kernel's",
        scene.source.pid,
        grouped(report.items),
        grouped(report.kernel_items),
    );
    let _ = writeln!(
        text,
        "{INDENT}{} changes   {:.0}/s   resent {}",
        grouped(scene.changes()),
        scene.source.changes_per_second.per_second,
        grouped(scene.resent()),
    );
    for (n, destination) in scene.destinations.iter().enumerate() {
        let _ = writeln!(text, "{}", destination_line(scene, n, destination));
    }
    if !scene.kills.is_empty() {
        text.push('\n');
    }
    for kill in &scene.kills {
        let _ = writeln!(text, "{}", kill_line(kill));
        if kill.equal_again.is_some() {
            let _ = writeln!(text, "{}", recovery_line(kill));
        }
    }
    text
}

fn destination_line(scene: &Scene, n: usize, destination: &DestinationState) -> String {
    let report = &destination.report;
    let state = match (report.attached, report.synced) {
        (_, true) => "in step",
        (true, false) => "catching up",
        (false, false) => "no source",
    };
    format!(
        "destination {:<2} pid {:<8} {:>11} items   {:<11} {:>7.0}/s\n{INDENT}{}",
        n + 1,
        destination.pid,
        grouped(report.items),
        state,
        destination.applied_per_second.per_second,
        link_columns(scene, destination),
    )
}

/// 0 stands for no measurement.
fn latency(ns: u64) -> String {
    if ns == 0 { "-".into() } else { duration(ns) }
}

/// What both views say of a link.
fn link_columns(scene: &Scene, destination: &DestinationState) -> String {
    let report = &destination.report;
    let link = scene.link(destination);
    let count = |count: Option<u64>| count.map_or("-".into(), grouped);
    format!(
        "unacked {:>5}  resent {:>3}  lag {:>7}  p50 {:>6}  p99 {:>7}",
        count(link.map(|link| link.unacked)),
        count(link.map(|link| link.resent)),
        report.lag_ns.map_or("-".into(), duration),
        latency(report.p50_ns),
        latency(report.p99_ns),
    )
}

fn kill_line(kill: &Kill) -> String {
    let at = kill.at.as_secs_f64();
    format!(
        "{at:>5.1} s  {} (pid {}) killed with SIGKILL, back as pid {}",
        name_of(kill.role),
        kill.pid,
        kill.back_pid
    )
}

fn recovery_line(kill: &Kill) -> String {
    let (took, at) = match kill.equal_again {
        Some(took) => (took.as_secs_f64() * 1000.0, (kill.at + took).as_secs_f64()),
        None => (f64::NAN, f64::NAN),
    };
    format!("{at:>5.1} s  equal again {took:.1} ms after the kill of {}", name_of(kill.role))
}

fn plain_line(scene: &Scene) -> String {
    let mut line = format!(
        "{:>5.1} s  source {}: {} items ({} kernel), {:.0} changes/s, {} sent again",
        scene.elapsed().as_secs_f64(),
        scene.source.pid,
        grouped(scene.source.report.items),
        grouped(scene.source.report.kernel_items),
        scene.source.changes_per_second.per_second,
        grouped(scene.resent()),
    );
    for destination in &scene.destinations {
        let columns = link_columns(scene, destination);
        let columns = columns.split_whitespace().collect::<Vec<_>>().join(" ");
        let _ =
            write!(line, " | {}: {} items, {columns}", destination.pid, grouped(destination.report.items));
    }
    line
}
