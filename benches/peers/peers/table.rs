//! The table: numbers and promises side by side.

use crate::guarantees::Guarantees;
use crate::harness::report::{Cell, Unit};
use crate::peers::{Kind, Peer};

/// Prints a row for each peer, and below it what a reader must know besides.
pub(crate) fn print(peers: &[Peer], cells: &[Cell]) {
    let mut rows = vec![titles()];
    rows.extend(peers.iter().map(|peer| row(peer, cells)));
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    println!();
    for (number, row) in rows.iter().enumerate() {
        println!("{}", line(row, &widths));
        if number == 0 {
            let rule: Vec<String> = widths.iter().map(|&width| "─".repeat(width)).collect();
            println!("{}", rule.join("  "));
        }
    }
    println!("\n{}\n", LEGEND);
    println!("{}", Guarantees::LEGEND);
    for (guarantees, name) in noted(peers) {
        println!("\n{}", wrapped(&format!("{name}: {}", guarantees.note)));
    }
}

const LEGEND: &str = "\
Round trips: mean / median; the mean is of a loop without timing calls, the median of one with them, which cost some tens of ns
each. Streams: records a second. [!]: in every run the cpus were apart, as the floor before or after it shows (over 150 ns);
compare such numbers with nothing.";

/// Of a line of text.
const WIDTH: usize = 126;

fn titles() -> Vec<String> {
    let mut titles: Vec<String> =
        ["", "spinning, two cpus", "sleeping, one cpu", "64 B", "1 KiB"].map(Into::into).into();
    titles.extend(Guarantees::TITLES.map(Into::into));
    titles
}

fn row(peer: &Peer, cells: &[Cell]) -> Vec<String> {
    let mut row = vec![peer.name.to_owned()];
    row.extend(Kind::ALL.map(|kind| {
        let id = peer.cell_id(kind);
        cells.iter().find(|cell| cell.id == id).map(|cell| text(kind, cell)).unwrap_or_default()
    }));
    match peer.guarantees {
        Some(guarantees) => row.extend(guarantees.answers().map(Into::into)),
        None => row.extend(Guarantees::TITLES.map(|_| String::new())),
    }
    row
}

fn text(kind: Kind, cell: &Cell) -> String {
    let value = cell.unit.text(cell.value());
    let median = cell.median_distribution().map(|at| Unit::Nanoseconds.text(at.p50 as f64));
    // What runs on one cpu does not mind how far the other one is.
    let flag = if cell.is_far() && kind != Kind::Sleeping { " [!]" } else { "" };
    match median {
        Some(median) => format!("{value} / {median}{flag}"),
        None => format!("{value}{flag}"),
    }
}

/// Numbers to the right, words to the left.
fn line(row: &[String], widths: &[usize]) -> String {
    let columns = row.iter().zip(widths).enumerate().map(|(column, (text, &width))| match column {
        1..=4 => format!("{text:>width$}"),
        _ => format!("{text:<width$}"),
    });
    columns.collect::<Vec<_>>().join("  ").trim_end().to_owned()
}

/// Each note once, with the name of the first peer that it is about, without its variant.
fn noted(peers: &[Peer]) -> Vec<(&'static Guarantees, &'static str)> {
    let mut noted: Vec<(&Guarantees, &str)> = Vec::new();
    for peer in peers {
        if let Some(guarantees) = peer.guarantees
            && !noted.iter().any(|(other, _)| other.note == guarantees.note)
        {
            let name = if guarantees.note.starts_with("as a pipe") { peer.name } else { family(peer.name) };
            noted.push((guarantees, name));
        }
    }
    noted
}

fn family(name: &str) -> &str {
    name.split([',', ':', '(']).next().unwrap_or(name).trim()
}

fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last_mut().expect("there is one");
        if !last.is_empty() && last.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push(word.to_owned());
            continue;
        }
        if !last.is_empty() {
            last.push(' ');
        }
        last.push_str(word);
    }
    lines.join("\n")
}
