//! Draws the results of `cargo bench --bench ipc -- --json FILE` and of `peers --json FILE` as SVG.
//!
//! `plots --out DIR FILE...` writes:
//!
//! - `latency-GROUP.svg`: distributions, a curve a cell; a group has the same name up to the last `/`;
//! - `series-GROUP.svg`: what varies with a size or a number; a line has the same name up to the last `/`, a group up to the
//!   first one;
//! - `peers-WHAT.svg`: the means of communication beside each other, as bars.
//!
//! A cell that is in more than one file is drawn as the last one has it. The same input gives the same files.

mod bars;
mod chart;
mod latency;
mod series;

#[path = "../../harness/mod.rs"]
mod harness;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use chart::{Drawn, Picture};
use harness::report::{Cell, Report};

/// Draws the results of benches as SVG.
#[derive(Debug, Parser)]
struct Options {
    /// Results: what the benches have written with `--json`
    #[arg(required = true, value_name = "FILE")]
    reports: Vec<PathBuf>,
    /// The directory of the pictures, made if there is none
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Cells by name, in the order of the files.
#[derive(Default)]
struct Results {
    cells: Vec<Cell>,
    machines: Vec<String>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Drawn<()> {
    let mut results = Results::default();
    for path in &options.reports {
        results.take(read(path)?);
    }
    std::fs::create_dir_all(&options.out).map_err(|error| format!("{}: {error}", options.out.display()))?;
    for (name, svg) in pictures(&results)? {
        let path = options.out.join(format!("{name}.svg"));
        std::fs::write(&path, svg).map_err(|error| format!("{}: {error}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

fn pictures(results: &Results) -> Drawn<Vec<Picture>> {
    let machine = results.machines.join("; ");
    let mut pictures = latency::draw(&results.cells, &machine)?;
    pictures.extend(series::draw(&results.cells, &machine)?);
    pictures.extend(bars::draw(&results.cells, &machine)?);
    Ok(pictures)
}

fn read(path: &Path) -> Result<Report, String> {
    let text = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_slice(&text)
        .map_err(|error| format!("{} is no report of a bench: {error}", path.display()))
}

impl Results {
    fn take(&mut self, report: Report) {
        for cell in report.cells {
            match self.cells.iter_mut().find(|other| other.id == cell.id) {
                Some(other) => *other = cell,
                None => self.cells.push(cell),
            }
        }
        if !self.machines.contains(&report.machine) {
            self.machines.push(report.machine);
        }
    }
}

/// Cells by a part of their names, in the order of the names; within a group in that of the cells.
fn grouped<'a>(
    cells: impl IntoIterator<Item = &'a Cell>,
    group: impl Fn(&'a str) -> &'a str,
) -> BTreeMap<&'a str, Vec<&'a Cell>> {
    let mut groups: BTreeMap<&str, Vec<&Cell>> = BTreeMap::new();
    for cell in cells {
        groups.entry(group(&cell.id)).or_default().push(cell);
    }
    groups
}

/// Whether the cpus were too far from each other for the numbers to count; what sleeps on one cpu does not mind.
fn is_far(cell: &Cell) -> bool {
    cell.is_far() && !cell.id.starts_with("peers/round-trip-sleeping/")
}

/// The name up to the last `/`; the whole one if it has none.
fn before_last(id: &str) -> &str {
    id.rsplit_once('/').map_or(id, |(before, _)| before)
}

/// The name up to the first `/`; the whole one if it has none.
fn before_first(id: &str) -> &str {
    id.split_once('/').map_or(id, |(before, _)| before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use harness::report::{Distribution, Run, Unit};

    fn cell(id: &str, unit: Unit, value: f64, x: Option<f64>, distribution: Option<Distribution>) -> Cell {
        Cell {
            id: id.into(),
            what: format!("{id}; what"),
            unit,
            runs: vec![Run { value, other: None, floor_ns: 80.0, distribution }],
            against: None,
            target: None,
            x: x.map(|x| ("items".to_owned(), x)),
            notes: Vec::new(),
        }
    }

    fn results() -> Results {
        let curve = vec![(0.0, 90), (50.0, 100), (99.0, 300), (99.9, 4000), (100.0, 9000)];
        let distribution = Distribution {
            count: 1000,
            p50: 100,
            p90: 200,
            p99: 300,
            p99_9: 4000,
            p99_99: 9000,
            max: 9000,
            curve,
        };
        let mut results = Results::default();
        let cells = vec![
            cell("resync/attach/1000", Unit::Milliseconds, 0.5, Some(1000.0), None),
            cell("resync/attach/100000", Unit::Milliseconds, 26.0, Some(100_000.0), None),
            cell("peers/round-trip-spinning/one", Unit::Nanoseconds, 120.0, None, Some(distribution)),
            cell("peers/stream-64/one", Unit::PerSecond, 4e6, None, None),
        ];
        results.take(Report { machine: "a machine".into(), cells });
        results
    }

    #[test]
    fn each_kind_of_cell_gets_its_picture() {
        let names: Vec<String> = pictures(&results()).unwrap().into_iter().map(|(name, _)| name).collect();
        let expected = [
            "latency-peers-round-trip-spinning",
            "series-resync",
            "peers-round-trip-spinning",
            "peers-stream-64",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn a_series_tells_which_of_its_places_were_measured_with_the_cpus_apart() {
        let hollow = |results: &Results| {
            let series = pictures(results).unwrap().into_iter().find(|(name, _)| name == "series-resync");
            let (_, svg) = series.unwrap();
            let holes = svg.lines().filter(|line| line.starts_with("<circle") && line.contains("#FFFFFF"));
            (holes.count(), svg.contains("Hollow: "))
        };
        let mut results = results();
        assert_eq!(hollow(&results), (0, false));
        results.cells[1].runs[0].floor_ns = 400.0;
        assert_eq!(hollow(&results), (1, true));
    }

    #[test]
    fn the_same_results_give_the_same_pictures() {
        assert_eq!(pictures(&results()).unwrap(), pictures(&results()).unwrap());
    }

    #[test]
    fn a_later_file_replaces_a_cell_of_an_earlier_one() {
        let mut results = results();
        let cells = vec![cell("peers/stream-64/one", Unit::PerSecond, 9e6, None, None)];
        results.take(Report { machine: "a machine".into(), cells });
        assert_eq!(results.cells.len(), 4);
        assert_eq!(results.cells[3].value(), 9e6);
        assert_eq!(results.machines, ["a machine"]);
    }
}
