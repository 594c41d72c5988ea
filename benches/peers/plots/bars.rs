//! The means of communication beside each other: a bar for each, on a logarithmic axis, with its number.

use plotters::prelude::*;

use crate::chart::{
    self, Drawn, INK, Picture, decades, duration, label, look, picture, short, text, unit_title,
};
use crate::harness::report::{Cell, Unit};
use crate::{before_last, grouped, is_far};

/// Names of cells that are drawn here begin so; then follows what was measured, then who.
const PREFIX: &str = "peers/";

/// The height of a bar with the room around it.
const ROW: u32 = 28;

/// Room for the names.
const NAMES: u32 = 270;

/// A picture for each thing that was measured.
pub(crate) fn draw(cells: &[Cell], machine: &str) -> Drawn<Vec<Picture>> {
    let groups = grouped(cells.iter().filter(|cell| cell.id.starts_with(PREFIX)), before_last);
    groups.into_iter().map(|(group, cells)| draw_group(group, &cells, machine)).collect()
}

fn draw_group(group: &str, cells: &[&Cell], machine: &str) -> Drawn<Picture> {
    let unit = cells[0].unit;
    let mut cells = cells.to_vec();
    // The best above.
    cells.sort_by(|one, other| match unit {
        Unit::PerSecond => other.value().total_cmp(&one.value()),
        _ => one.value().total_cmp(&other.value()),
    });
    let (from, to) = decades(cells.iter().map(|cell| cell.value())).ok_or("values that are not above 0")?;
    let rows = cells.len() as f64;
    let height = ROW * cells.len() as u32 + 68 + 46;
    let what = cells[0].what.split_once("; ").map_or(group, |(_, what)| what);
    let better = if unit == Unit::PerSecond { "more is better" } else { "less is better" };
    let title = format!("{}{} ({better})", what[..1].to_uppercase(), &what[1..]);
    let machine = match cells.iter().any(|cell| is_far(cell)) {
        true => format!("{machine}. [!] the host had moved the cpus apart"),
        false => machine.to_owned(),
    };
    let svg = picture(&title, &machine, height, |area| {
        let (left, right) = area.split_horizontally(NAMES);
        let mut chart = ChartBuilder::on(&right)
            .x_label_area_size(46)
            .margin_right(90)
            .build_cartesian_2d((from..to).log_scale(), 0.0..rows)?;
        let mut mesh = chart.configure_mesh();
        chart::style(&mut mesh);
        mesh.disable_y_mesh()
            .disable_y_axis()
            .x_labels(8)
            .x_label_formatter(&|&value| match unit {
                Unit::PerSecond => short(value),
                _ => duration(value),
            })
            .x_desc(format!("{} (logarithmic)", unit_title(unit)))
            .draw()?;
        for (cell, row) in cells.iter().zip(0..) {
            let top = rows - f64::from(row);
            let colour = look(colour(cell)).colour;
            let bar = [(from, top - 0.82), (cell.value().max(from), top - 0.18)];
            chart.draw_series([Rectangle::new(bar, colour.filled())])?;
            let (x, y) = chart.backend_coord(&(cell.value(), top - 0.5));
            let apart = if is_far(cell) { " [!]" } else { "" };
            let number = format!("{}{apart}", label(unit, cell.value()));
            let root = chart.plotting_area().strip_coord_spec();
            let (origin_x, origin_y) = root.get_base_pixel();
            root.draw(&Text::new(number, (x - origin_x + 6, y - origin_y - 4), text(13, INK)))?;
            let (_, left_y) = left.get_base_pixel();
            let name = cell.what.split("; ").next().unwrap_or(&cell.what);
            left.draw(&Text::new(name.to_owned(), (4, y - left_y - 4), text(13, INK)))?;
        }
        Ok(())
    })?;
    Ok((group.replace('/', "-"), svg))
}

/// Three kinds: this library, the floors, all others.
fn colour(cell: &Cell) -> usize {
    let peer = cell.id.rsplit('/').next().unwrap_or_default();
    match peer {
        peer if peer.starts_with("shmirror") => 1,
        peer if peer.starts_with("floor") => 2,
        _ => 0,
    }
}
