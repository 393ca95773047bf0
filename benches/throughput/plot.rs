//! Plots of the typical run, as SVG that is legible on a light and on a dark page.
//!
//! Each plot brings its own background and says in its style sheet what its colours are where the
//! reader prefers dark pages.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::combinators::BindKeyPoints;
use plotters::prelude::*;

use crate::figures::count;
use crate::options::Kind;
use crate::report::{Report, Series};
use crate::works::Case;
use crate::{Error, Result};

const SIZE: (u32, u32) = (880, 440);
/// Points of a curve at most: more cannot be seen.
const POINTS: usize = 400;
/// Parts into which the time of a rate is cut.
const BINS: usize = 24;
const FONT: &str = "system-ui, sans-serif";

const BACKGROUND: RGBColor = RGBColor(0xff, 0xff, 0xff);
const TEXT: RGBColor = RGBColor(0x1f, 0x23, 0x28);
const AXIS: RGBColor = RGBColor(0x81, 0x8b, 0x98);
const GRID: RGBColor = RGBColor(0xe6, 0xea, 0xef);
/// The curves' colours, and what they are on a dark page.
const CURVES: [(RGBColor, &str); 4] = [
    (RGBColor(0x09, 0x69, 0xda), "#58a6ff"),
    (RGBColor(0xbc, 0x4c, 0x00), "#f0883e"),
    (RGBColor(0x6c, 0xb6, 0xff), "#1f6feb"),
    (RGBColor(0xe5, 0xa5, 0x4b), "#9e6a03"),
];

/// A plot's file, the works that it shows, and its title.
const PLOTS: [(&str, Case, &str); 3] = [
    ("latency-w1.svg", Case::W1, "Latency under full load (W1)"),
    ("latency-w4.svg", Case::W4, "Latency at 200 events/s (W4)"),
    ("rate-w1.svg", Case::W1, "Events delivered per second (W1)"),
];

/// The plots that can be drawn of what was measured: file and title.
pub(crate) fn files(report: &Report) -> Vec<(&'static str, &'static str)> {
    let is_measured = |case| report.series().any(|series| series.case == case);
    PLOTS
        .into_iter()
        .filter(|(_, case, _)| is_measured(*case))
        .map(|(file, _, title)| (file, title))
        .collect()
}

/// Draws them.
pub(crate) fn draw(report: &Report, folder: &Path) -> Result<()> {
    for (file, title) in files(report) {
        let curves = match file {
            "latency-w1.svg" => latencies(report, Case::W1),
            "latency-w4.svg" => latencies(report, Case::W4),
            _ => rates(report),
        };
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            let drawn = if file.starts_with("rate") {
                rate_plot(&area, title, &curves)
            } else {
                latency_plot(&area, title, &curves)
            };
            drawn.map_err(|error| -> Error { format!("{file}: {error}").into() })?;
        }
        fs::write(folder.join(file), dressed(&svg, title))?;
    }
    Ok(())
}

/// A line with its name.
struct Curve {
    name: String,
    color: RGBColor,
    width: u32,
    points: Vec<(f64, f64)>,
}

/// For each database the share of events that took no longer than so many milliseconds.
fn latencies(report: &Report, case: Case) -> Vec<Curve> {
    let mut curves = Vec::new();
    for (kind, colors) in [(Kind::Sqlite, [0, 2]), (Kind::Postgres, [1, 3])] {
        let Some(run) = report.typical(Series { case, kind }) else { continue };
        let both = [("end to end", &run.samples.end_to_end), ("accepted", &run.samples.acceptance)];
        for ((what, samples), color) in both.into_iter().zip(colors) {
            curves.push(Curve {
                name: format!("{}, {what}", kind.name()),
                color: CURVES[color].0,
                width: if what == "accepted" { 2 } else { 3 },
                points: distribution(samples),
            });
        }
    }
    curves
}

/// Milliseconds, and the share of the samples up to there in percent.
fn distribution(sorted: &[f64]) -> Vec<(f64, f64)> {
    let step = (sorted.len() / POINTS).max(1);
    let total = count(sorted.len());
    let last = sorted.len().saturating_sub(1);
    (0..sorted.len())
        .filter(|index| index.is_multiple_of(step) || *index == last)
        .map(|index| (sorted[index].max(0.001), count(index + 1) / total * 100.0))
        .collect()
}

/// For each database the rate of arrivals over time.
fn rates(report: &Report) -> Vec<Curve> {
    let mut curves = Vec::new();
    for (kind, color) in [(Kind::Sqlite, 0), (Kind::Postgres, 1)] {
        let Some(run) = report.typical(Series { case: Case::W1, kind }) else { continue };
        let arrivals = &run.samples.arrivals;
        let width = arrivals.last().copied().unwrap_or_default() / count(BINS);
        if width <= 0.0 {
            continue;
        }
        let points = (0..BINS).map(|bin| {
            let (from, to) = (count(bin) * width, count(bin + 1) * width);
            let within = arrivals.partition_point(|time| *time <= to)
                - arrivals.partition_point(|time| *time <= from);
            (f64::midpoint(from, to), count(within) / width)
        });
        curves.push(Curve {
            name: kind.name().into(),
            color: CURVES[color].0,
            width: 3,
            points: points.collect(),
        });
    }
    curves
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// The smallest and the largest of a coordinate over all curves.
fn range(curves: &[Curve], coordinate: fn(&(f64, f64)) -> f64) -> (f64, f64) {
    let values = curves.iter().flat_map(|curve| curve.points.iter().map(coordinate));
    values.fold((f64::MAX, 0.0), |(least, most), value| (least.min(value), most.max(value)))
}

/// The numbers 1, 2 and 5 of each power of ten (from a microsecond to an hour, in milliseconds) that
/// lie within the values, and one on either side.
fn steps((least, most): (f64, f64)) -> Vec<f64> {
    let powers = -3..=6;
    let all: Vec<f64> =
        powers.flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(power))).collect();
    let from = all.partition_point(|step| *step <= least).saturating_sub(1);
    let to = all.partition_point(|step| *step < most).min(all.len() - 1);
    all[from..=to].to_vec()
}

fn latency_plot(area: &Area, title: &str, curves: &[Curve]) -> Drawn {
    let steps = steps(range(curves, |point| point.0));
    let (Some(&from), Some(&to)) = (steps.first(), steps.last()) else { return Ok(()) };
    let area = headed(area, title, curves)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(16)
        .margin_right(44)
        .x_label_area_size(48)
        .y_label_area_size(84)
        .build_cartesian_2d((from..to).log_scale().with_key_points(steps), 0.0..100.0)?;
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(AXIS)
        .label_style((FONT, 15).into_font().color(&TEXT))
        .axis_desc_style((FONT, 15).into_font().color(&TEXT))
        .x_desc("milliseconds (logarithmic)")
        .y_desc("share of events")
        .x_label_formatter(&|value| plain(*value))
        .y_label_formatter(&|value| format!("{value:.0} %"))
        .y_labels(6)
        .draw()?;
    for curve in curves {
        let style = curve.color.stroke_width(curve.width);
        chart.draw_series(LineSeries::new(curve.points.iter().copied(), style))?;
    }
    area.present()?;
    Ok(())
}

/// `0.05`, `2`, `5,000`.
fn plain(value: f64) -> String {
    if value >= 1.0 {
        return crate::report::whole(value);
    }
    let text = format!("{value:.3}");
    text.trim_end_matches('0').to_owned()
}

fn rate_plot(area: &Area, title: &str, curves: &[Curve]) -> Drawn {
    let (_, seconds) = range(curves, |point| point.0);
    let (_, most) = range(curves, |point| point.1);
    let area = headed(area, title, curves)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(16)
        .margin_right(44)
        .x_label_area_size(48)
        .y_label_area_size(84)
        .build_cartesian_2d(0.0..seconds * 1.02, 0.0..most * 1.1)?;
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(AXIS)
        .label_style((FONT, 15).into_font().color(&TEXT))
        .axis_desc_style((FONT, 15).into_font().color(&TEXT))
        .x_desc("seconds since the first Emit")
        .y_desc("events/s")
        .x_label_formatter(&|value| format!("{value:.1}"))
        .y_label_formatter(&|value| crate::report::whole(*value))
        .y_labels(6)
        .draw()?;
    for curve in curves {
        let style = curve.color.stroke_width(curve.width);
        chart.draw_series(LineSeries::new(curve.points.iter().copied(), style))?;
    }
    area.present()?;
    Ok(())
}

/// Writes the title and the names of the curves; gives what is left below them.
fn headed<'a>(
    area: &Area<'a>,
    title: &str,
    curves: &[Curve],
) -> std::result::Result<Area<'a>, Box<dyn std::error::Error>> {
    /// Where text begins: above the plot's left edge.
    const LEFT: i32 = 100;
    const HEIGHT: u32 = 76;
    area.fill(&BACKGROUND)?;
    let (head, rest) = area.split_vertically(HEIGHT);
    let bold = (FONT, 22).into_font().style(FontStyle::Bold).color(&TEXT);
    head.draw(&Text::new(title.to_owned(), (LEFT, 18), bold))?;
    let (mut left, middle) = (LEFT, 60);
    for curve in curves {
        let line = vec![(left, middle), (left + 22, middle)];
        head.draw(&PathElement::new(line, curve.color.stroke_width(curve.width)))?;
        let plain = (FONT, 15).into_font().color(&TEXT);
        head.draw(&Text::new(curve.name.clone(), (left + 28, middle - 6), plain))?;
        left += 190;
    }
    Ok(rest)
}

/// The plot with its title for who cannot see it, and its colours for dark pages.
fn dressed(svg: &str, title: &str) -> String {
    let code = |color: RGBColor| format!("#{:02X}{:02X}{:02X}", color.0, color.1, color.2);
    let mut dark = String::new();
    let fixed = [(BACKGROUND, "#0d1117"), (TEXT, "#e6edf3"), (AXIS, "#656c76"), (GRID, "#262c36")];
    for (color, other) in fixed.into_iter().chain(CURVES) {
        let code = code(color);
        for attribute in ["fill", "stroke"] {
            // Writing into a String cannot fail.
            let _ = write!(dark, "[{attribute}=\"{code}\"]{{{attribute}:{other}}}");
        }
    }
    let head = format!(
        "<title>{title}</title>\n<style>@media (prefers-color-scheme: dark){{{dark}}}</style>\n"
    );
    match svg.split_once(">\n") {
        Some((root, rest)) => format!("{root} role=\"img\">\n{head}{rest}"),
        None => svg.to_owned(),
    }
}
