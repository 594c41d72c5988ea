//! What varies: throughput against the size of values or the number of opcodes or destinations, the time of a resync against
//! the number of items. A line a series; a place that was only measured with the cpus apart is hollow.

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;
use std::ops::Range;

use crate::chart::{
    self, Drawn, LEGEND_ROW, Look, Picture, extent, label, legend, look, picture, short, unit_title,
};
use crate::harness::report::{Cell, Unit};
use crate::{before_first, before_last, grouped, is_far};

const PLOT_HEIGHT: u32 = 380;

/// A wider range than this is drawn with a logarithmic axis.
const WIDE: f64 = 12.0;

/// A picture for each group of series, and for each unit within.
pub(crate) fn draw(cells: &[Cell], machine: &str) -> Drawn<Vec<Picture>> {
    let mut pictures = Vec::new();
    for (group, cells) in grouped(cells.iter().filter(|cell| cell.x.is_some()), before_first) {
        let mut units: Vec<Unit> = Vec::new();
        for cell in &cells {
            if !units.contains(&cell.unit) {
                units.push(cell.unit);
            }
        }
        for unit in &units {
            let cells: Vec<&Cell> = cells.iter().copied().filter(|cell| cell.unit == *unit).collect();
            let name = match units.len() {
                1 => format!("series-{group}"),
                _ => format!("series-{group}-{}", unit_title(*unit).replace(' ', "-")),
            };
            pictures.push((name, draw_group(group, &cells, *unit, machine)?));
        }
    }
    Ok(pictures)
}

fn draw_group(group: &str, cells: &[&Cell], unit: Unit, machine: &str) -> Drawn<String> {
    let lines: Vec<(&str, Vec<Point>)> = grouped(cells.iter().copied(), before_last)
        .into_iter()
        .map(|(series, cells)| (series, points(&cells)))
        .collect();
    let all = || lines.iter().flat_map(|(_, points)| points);
    let x_title = cells.iter().find_map(|cell| cell.x.as_ref()).map_or("", |(title, _)| title.as_str());
    let x = Axis::new(all().map(|point| point.at.0), true).ok_or("a series without places above 0")?;
    let y = Axis::new(all().map(|point| point.at.1), false).ok_or("a series without values above 0")?;
    let names: Vec<(String, Look)> = lines
        .iter()
        .enumerate()
        .map(|(index, (series, _))| (series_name(group, series), look(index)))
        .collect();
    let height = PLOT_HEIGHT + (LEGEND_ROW * names.len() as i32) as u32 + 76;
    let is_bytes = x_title.contains("byte");
    let machine = match all().any(|point| point.is_far) {
        true => format!("{machine}. Hollow: the host had moved the cpus apart"),
        false => machine.to_owned(),
    };
    picture(&title(group, unit), &machine, height, |area| {
        let (above, below) = area.split_vertically(PLOT_HEIGHT);
        let mut chart = ChartBuilder::on(&above)
            .x_label_area_size(46)
            .y_label_area_size(82)
            .margin_right(16)
            .build_cartesian_2d(x, y)?;
        let x_label = |value: &f64| if is_bytes { label(Unit::Bytes, *value) } else { short(*value) };
        let mut mesh = chart.configure_mesh();
        chart::style(&mut mesh);
        mesh.x_label_formatter(&x_label)
            .y_label_formatter(&|value| label(unit, *value))
            .x_desc(x_title)
            .y_desc(unit_title(unit))
            .draw()?;
        for ((_, points), index) in lines.iter().zip(0..) {
            let look = look(index);
            chart::line(&mut chart, points.iter().map(|point| point.at).collect(), look)?;
            let dots = points.iter().map(|point| Circle::new(point.at, 4, look.colour.filled()));
            chart.draw_series(dots)?;
            let holes = points.iter().filter(|point| point.is_far);
            chart.draw_series(holes.map(|point| Circle::new(point.at, 2, WHITE.filled())))?;
        }
        legend(&below.margin(8, 0, 82, 0), &names)
    })
}

/// A place in a series, and whether the cpus were apart in all that is known of it.
#[derive(Clone, Copy)]
struct Point {
    at: (f64, f64),
    is_far: bool,
}

fn points(cells: &[&Cell]) -> Vec<Point> {
    let point = |cell: &&Cell| Some(Point { at: (cell.x.as_ref()?.1, cell.value()), is_far: is_far(cell) });
    let mut points: Vec<Point> = cells.iter().filter_map(point).collect();
    points.sort_by(|one, other| one.at.0.total_cmp(&other.at.0));
    points
}

fn title(group: &str, unit: Unit) -> String {
    let mut title = group.replace('-', " ");
    if let Some(first) = title.get(..1).map(str::to_uppercase) {
        title.replace_range(..1, &first);
    }
    format!("{title}: {}", unit_title(unit))
}

/// The series without its group, if there is more to it.
fn series_name(group: &str, series: &str) -> String {
    let name = series.strip_prefix(group).and_then(|rest| rest.strip_prefix('/')).unwrap_or(series);
    name.replace('/', ", ")
}

/// An axis whose marks are where there are values, or at round numbers.
#[derive(Clone)]
struct Axis {
    from: f64,
    to: f64,
    log: bool,
    marks: Vec<f64>,
}

impl Axis {
    /// `at_values` puts a mark at each value, as long as they do not come too near to each other.
    fn new(values: impl Iterator<Item = f64>, at_values: bool) -> Option<Axis> {
        let mut values: Vec<f64> = values.collect();
        values.sort_unstable_by(f64::total_cmp);
        values.dedup();
        let (least, most) = extent(values.iter().copied())?;
        let log = most / least > WIDE;
        let mut axis = match (log, at_values) {
            (true, _) => Axis { from: least / 1.3, to: most * 1.3, log, marks: Vec::new() },
            (false, true) => {
                let room = if most > least { (most - least) * 0.05 } else { most * 0.5 };
                Axis { from: least - room, to: most + room, log, marks: Vec::new() }
            }
            (false, false) => Axis { from: 0.0, to: most * 1.1, log, marks: Vec::new() },
        };
        axis.marks = if at_values { axis.spaced(&values) } else { axis.round() };
        Some(axis)
    }

    /// Where a value is, from 0 to 1.
    fn place(&self, value: f64) -> f64 {
        match self.log {
            true => (value / self.from).ln() / (self.to / self.from).ln(),
            false => (value - self.from) / (self.to - self.from),
        }
    }

    fn spaced(&self, values: &[f64]) -> Vec<f64> {
        const APART: f64 = 0.07;
        let mut marks: Vec<f64> = Vec::new();
        for &value in values {
            if marks.last().is_none_or(|&last| self.place(value) - self.place(last) >= APART) {
                marks.push(value);
            }
        }
        marks
    }

    fn round(&self) -> Vec<f64> {
        if !self.log {
            let raw = self.to / 6.0;
            let power = 10f64.powf(raw.log10().floor());
            let step =
                [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|&step| step >= raw);
            let step = step.unwrap_or(10.0 * power);
            return (0..=10).map(|mark| f64::from(mark) * step).take_while(|&mark| mark <= self.to).collect();
        }
        let factors: &[f64] = if self.to / self.from > 300.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let powers = self.from.log10().floor() as i32..=self.to.log10().ceil() as i32;
        let marks = powers.flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)));
        marks.filter(|mark| (self.from..=self.to).contains(mark)).collect()
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        limit.0 + (self.place(*value) * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.marks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.from..self.to
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        short(*value)
    }
}
