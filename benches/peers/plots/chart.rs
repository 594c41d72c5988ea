//! What the pictures share: size, colours, how numbers are written, the frame, and the legend.

use std::error::Error;

use plotters::chart::MeshStyle;
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::harness::report::Unit;

/// A canvas of SVG.
pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A picture: its name, and the text of the file.
pub(crate) type Picture = (String, String);

pub(crate) type Drawn<T> = Result<T, Box<dyn Error>>;

pub(crate) const WIDTH: u32 = 960;

/// Dark on white, which reads on any page.
pub(crate) const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
pub(crate) const FAINT: RGBColor = RGBColor(0x66, 0x66, 0x66);
pub(crate) const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);
pub(crate) const FONT: &str = "sans-serif";

/// Colours that can be told apart with any kind of sight (Okabe and Ito, <https://jfly.uni-koeln.de/color/>), without the
/// yellow, which is too light on white.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x22, 0x22, 0x22),
];

/// How a line looks: a colour, and from the eighth line on dashes.
#[derive(Clone, Copy)]
pub(crate) struct Look {
    pub(crate) colour: RGBColor,
    dashed: bool,
}

pub(crate) fn look(index: usize) -> Look {
    Look { colour: COLOURS[index % COLOURS.len()], dashed: index >= COLOURS.len() }
}

/// How the grid, the axes and their labels look.
pub(crate) fn style<X: Ranged, Y: Ranged, B: DrawingBackend>(mesh: &mut MeshStyle<'_, '_, X, Y, B>) {
    mesh.axis_style(FAINT)
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .label_style(text(13, INK))
        .axis_desc_style(text(14, INK));
}

/// Draws on a canvas of this height with a title, a line about the machine below, and `body` between.
pub(crate) fn picture(
    title: &str,
    machine: &str,
    height: u32,
    body: impl FnOnce(&Area<'_>) -> Drawn<()>,
) -> Drawn<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE)?;
        area.draw(&Text::new(title.to_owned(), (16, 14), text(19, INK)))?;
        area.draw(&Text::new(machine.to_owned(), (16, height as i32 - 20), text(12, FAINT)))?;
        body(&area.margin(44, 28, 12, 24))?;
        area.present()?;
    }
    Ok(svg)
}

/// A style of text.
pub(crate) fn text(size: u32, colour: RGBColor) -> TextStyle<'static> {
    (FONT, size).into_font().color(&colour)
}

/// A line through these points, in the way of its look.
pub(crate) fn line<CT>(
    chart: &mut ChartContext<'_, SVGBackend<'_>, CT>,
    points: Vec<(f64, f64)>,
    look: Look,
) -> Drawn<()>
where
    CT: CoordTranslate<From = (f64, f64)>,
{
    let style = look.colour.stroke_width(2);
    if look.dashed {
        chart.draw_series(DashedLineSeries::new(points, 6, 4, style))?;
    } else {
        chart.draw_series(LineSeries::new(points, style))?;
    }
    Ok(())
}

/// Names beside their lines, from the top of `area` down.
pub(crate) fn legend(area: &Area<'_>, names: &[(String, Look)]) -> Drawn<()> {
    for ((name, look), row) in names.iter().zip(0..) {
        let y = row * LEGEND_ROW + 8;
        let style = look.colour.stroke_width(2);
        let parts: &[[i32; 2]] = if look.dashed { &[[0, 9], [13, 22]] } else { &[[0, 22]] };
        for &[from, to] in parts {
            area.draw(&PathElement::new(vec![(from, y), (to, y)], style))?;
        }
        area.draw(&Text::new(name.clone(), (30, y - 7), text(13, INK)))?;
    }
    Ok(())
}

/// The height of a legend's row.
pub(crate) const LEGEND_ROW: i32 = 20;

/// A number with its unit, short, as on an axis.
pub(crate) fn label(unit: Unit, value: f64) -> String {
    match unit {
        _ if value == 0.0 => "0".into(),
        Unit::Nanoseconds => duration(value),
        Unit::Milliseconds => duration(value * 1e6),
        Unit::PerSecond => format!("{}/s", short(value)),
        Unit::Bytes => bytes(value),
        Unit::Share => format!("{} %", number(value * 100.0)),
        Unit::Ratio => number(value),
    }
}

/// What an axis of a unit is called.
pub(crate) fn unit_title(unit: Unit) -> &'static str {
    match unit {
        Unit::Nanoseconds | Unit::Milliseconds => "time",
        Unit::PerSecond => "records a second",
        Unit::Bytes => "bytes",
        Unit::Share => "share",
        Unit::Ratio => "ratio",
    }
}

pub(crate) fn duration(ns: f64) -> String {
    match ns {
        ns if ns < 1e3 => format!("{} ns", number(ns)),
        ns if ns < 1e6 => format!("{} µs", number(ns / 1e3)),
        ns if ns < 1e9 => format!("{} ms", number(ns / 1e6)),
        ns => format!("{} s", number(ns / 1e9)),
    }
}

fn bytes(value: f64) -> String {
    match value {
        value if value < 1024.0 => format!("{} B", number(value)),
        value if value < 1_048_576.0 => format!("{} KiB", number(value / 1024.0)),
        value => format!("{} MiB", number(value / 1_048_576.0)),
    }
}

/// A number with the letter of its thousands.
pub(crate) fn short(value: f64) -> String {
    match value {
        value if value < 1e3 => number(value),
        value if value < 1e6 => format!("{} k", number(value / 1e3)),
        value if value < 1e9 => format!("{} M", number(value / 1e6)),
        value => format!("{} G", number(value / 1e9)),
    }
}

/// With three digits at most, without zeroes at the end.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.decimals$}");
    if decimals == 0 {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The powers of ten around these values.
pub(crate) fn decades(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    let (least, most) = extent(values)?;
    let from = 10f64.powf(least.log10().floor());
    let to = 10f64.powf(most.log10().ceil());
    Some((from, if to > from { to } else { from * 10.0 }))
}

/// The least and the largest; nothing if there are none, or if one has no logarithm.
pub(crate) fn extent(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    let (mut least, mut most) = (f64::INFINITY, 0.0);
    for value in values {
        least = value.min(least);
        most = value.max(most);
    }
    (least > 0.0 && least.is_finite() && most.is_finite()).then_some((least, most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_at_most() {
        let labels = [0.5, 8.0, 85.25, 149.6, 1000.0, 25_300_000.0, 1e9].map(short);
        assert_eq!(labels, ["0.5", "8", "85.2", "150", "1 k", "25.3 M", "1 G"]);
        assert_eq!(label(Unit::PerSecond, 975_400.0), "975 k/s");
        assert_eq!(label(Unit::Milliseconds, 250.0), "250 ms");
        assert_eq!(label(Unit::Bytes, 16384.0), "16 KiB");
        assert_eq!(duration(4_470.0), "4.47 µs");
    }

    #[test]
    fn decades_enclose_their_values() {
        assert_eq!(decades([65.0, 2300.0]), Some((10.0, 10_000.0)));
        assert_eq!(decades([100.0]), Some((100.0, 1000.0)));
        assert_eq!(decades([0.0, 5.0]), None);
        assert_eq!(decades([]), None);
    }
}
