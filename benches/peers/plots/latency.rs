//! Distributions of latency: the percentile against the time that it took.
//!
//! The axis of percentiles is that of 1 / (1 - p), logarithmic: 90 %, 99 %, 99.9 % are equally far from each other, so that
//! the tail can be seen.

use plotters::prelude::*;

use crate::chart::{self, Drawn, LEGEND_ROW, Look, Picture, decades, duration, legend, look, picture};
use crate::harness::report::{Cell, Distribution};
use crate::{before_last, grouped, is_far};

const PLOT_HEIGHT: u32 = 420;

/// A picture for each group of cells that have distributions.
pub(crate) fn draw(cells: &[Cell], machine: &str) -> Drawn<Vec<Picture>> {
    let with = cells.iter().filter(|cell| distribution(cell).is_some());
    let groups = grouped(with, |id| if id.contains('/') { before_last(id) } else { "" });
    groups.into_iter().map(|(group, cells)| draw_group(group, &cells, machine)).collect()
}

fn draw_group(group: &str, cells: &[&Cell], machine: &str) -> Drawn<Picture> {
    let curves: Vec<Vec<(f64, f64)>> =
        cells.iter().filter_map(|cell| distribution(cell)).map(|distribution| curve(&distribution)).collect();
    let points = || curves.iter().flatten();
    let (from, to) = decades(points().map(|point| point.1)).ok_or("a distribution without values")?;
    let last = points().map(|point| point.0).fold(10.0, f64::max);
    let names: Vec<(String, Look)> =
        cells.iter().enumerate().map(|(index, cell)| (name(cell), look(index))).collect();
    let legend_height = LEGEND_ROW * names.len() as i32 + 8;
    let height = PLOT_HEIGHT + legend_height as u32 + 68;
    let title = match group {
        "" => "Latency".to_owned(),
        group => format!("Latency: {}", group.replace('/', ", ").replace('-', " ")),
    };
    let svg = picture(&title, machine, height, |area| {
        let (above, below) = area.split_vertically(PLOT_HEIGHT);
        let mut chart = ChartBuilder::on(&above)
            .x_label_area_size(46)
            .y_label_area_size(78)
            .build_cartesian_2d((1.0..last).log_scale(), (from..to).log_scale())?;
        let mut mesh = chart.configure_mesh();
        chart::style(&mut mesh);
        mesh.x_labels(8)
            .y_labels(8)
            .x_label_formatter(&|&x| percentile(x))
            .y_label_formatter(&|&y| duration(y))
            .x_desc("percentile")
            .y_desc("latency")
            .draw()?;
        for (points, index) in curves.iter().zip(0..) {
            chart::line(&mut chart, points.clone(), look(index))?;
        }
        legend(&below.margin(8, 0, 78, 0), &names)
    })?;
    let name = match group {
        "" => "latency".to_owned(),
        group => format!("latency-{}", group.replace('/', "-")),
    };
    Ok((name, svg))
}

fn distribution(cell: &Cell) -> Option<Distribution> {
    cell.median_distribution().filter(|found| !found.curve.is_empty())
}

/// The end at 100 % is infinitely far: it is drawn where the last one of so many stands.
fn curve(distribution: &Distribution) -> Vec<(f64, f64)> {
    let end = distribution.count.max(2) as f64;
    let place = |percent: f64| 1.0 / (1.0 - percent / 100.0);
    let steps = distribution.curve.iter().map(|&(percent, ns)| (place(percent), ns.max(1) as f64));
    let mut points: Vec<(f64, f64)> = steps.take_while(|&(place, _)| place < 0.9 * end).collect();
    points.push((end, distribution.max.max(1) as f64));
    // Steps at the same value say nothing new, but for the first and the last of them.
    let is_between = |at: usize| {
        at > 0
            && at + 1 < points.len()
            && points[at - 1].1 == points[at].1
            && points[at].1 == points[at + 1].1
    };
    (0..points.len()).filter(|&at| !is_between(at)).map(|at| points[at]).collect()
}

fn name(cell: &Cell) -> String {
    let apart = if is_far(cell) { " [cpus apart]" } else { "" };
    let what = cell.what.split(';').next().unwrap_or(&cell.what);
    match distribution(cell) {
        Some(at) => {
            let [p50, p99] = [at.p50, at.p99].map(|ns| duration(ns as f64));
            format!("{what} (p50 {p50}, p99 {p99}){apart}")
        }
        None => format!("{what}{apart}"),
    }
}

/// What 1 / (1 - p) is in percent: 10 is 90 %, 1000 is 99.9 %.
fn percentile(place: f64) -> String {
    let nines = place.log10().round() as usize;
    match nines {
        0 => "0 %".into(),
        1 => "90 %".into(),
        2 => "99 %".into(),
        _ => format!("99.{} %", "9".repeat(nines - 2)),
    }
}
