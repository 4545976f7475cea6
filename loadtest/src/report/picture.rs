//! Pictures of reports, as SVG: lines over time, and bars of what follows what.
//!
//! Keeps: nothing.
//! Order: lines and bars in the order in which they are given.
//! Crash: nothing; a picture is made in memory.
//! Knows no measurement.

use anyhow::{Result, anyhow};
use plotters::chart::ChartBuilder;
use plotters::coord::ranged1d::ValueFormatter;
use plotters::coord::{Shift, ranged1d::Ranged};
use plotters::drawing::{DrawingArea, IntoDrawingArea as _};
use plotters::element::{PathElement, Rectangle, Text};
use plotters::prelude::{IntoLogRange as _, SVGBackend};
use plotters::series::LineSeries;
use plotters::style::{BLACK, Color as _, IntoFont as _, RGBColor, WHITE};

const WIDTH: u32 = 1180;
const COLORS: [RGBColor; 10] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 73, 38),
    RGBColor(44, 140, 68),
    RGBColor(148, 103, 189),
    RGBColor(200, 140, 10),
    RGBColor(23, 160, 175),
    RGBColor(140, 86, 75),
    RGBColor(227, 119, 194),
    RGBColor(110, 110, 110),
    RGBColor(150, 160, 20),
];
const MARK: RGBColor = RGBColor(200, 30, 30);

/// The color of the `index`th line or bar.
fn color(index: usize) -> RGBColor {
    COLORS[index % COLORS.len()]
}

/// A line of a plot.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Something that happened at a time, or from one time to another.
#[derive(Debug, Clone)]
pub(crate) struct Mark {
    pub(crate) from: f64,
    pub(crate) to: f64,
    pub(crate) name: String,
}

/// Axes of a plot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Axes<'a> {
    pub(crate) title: &'a str,
    pub(crate) x: &'a str,
    pub(crate) y: &'a str,
    /// Decades of `y` are as high as each other.
    pub(crate) log: bool,
    /// How a value of `x` is written.
    pub(crate) x_shown: fn(f64) -> String,
}

/// Lines, with marks behind them.
pub(crate) fn lines(axes: &Axes<'_>, lines: &[Line], marks: &[Mark]) -> Result<String> {
    let all = || lines.iter().flat_map(|line| line.points.iter());
    let most_x = all().map(|point| point.0).chain(marks.iter().map(|mark| mark.to));
    let x = 0.0..most_x.fold(1.0, f64::max);
    let most = all().map(|point| point.1).fold(1.0, f64::max) * 1.15;
    draw((WIDTH, 300), |root| {
        let mut chart = ChartBuilder::on(root);
        chart
            .caption(axes.title, ("sans-serif", 15))
            .margin(8)
            .x_label_area_size(34)
            .y_label_area_size(64);
        if axes.log {
            let above_zero = all().map(|point| point.1).filter(|y| *y > 0.0);
            // A decade at least: plotters never ends with the marks of a logarithmic axis that has none.
            let least = above_zero.fold(most / 10.0, f64::min);
            let chart = chart.build_cartesian_2d(x, (least..most).log_scale());
            chart_of(chart.map_err(failed)?, axes, lines, marks, (least, most))
        } else {
            let chart = chart.build_cartesian_2d(x, 0.0..most);
            chart_of(chart.map_err(failed)?, axes, lines, marks, (0.0, most))
        }
    })
}

type Chart<'a, 'b, Y> = plotters::chart::ChartContext<
    'a,
    SVGBackend<'b>,
    plotters::coord::cartesian::Cartesian2d<plotters::coord::types::RangedCoordf64, Y>,
>;

fn chart_of<'a, Y: Ranged<ValueType = f64> + ValueFormatter<f64>>(
    mut chart: Chart<'a, 'a, Y>,
    axes: &Axes<'_>,
    lines: &[Line],
    marks: &[Mark],
    (least, most): (f64, f64),
) -> Result<()> {
    let shown = |x: &f64| (axes.x_shown)(*x);
    let mut mesh = chart.configure_mesh();
    mesh.x_desc(axes.x).y_desc(axes.y).x_label_formatter(&shown);
    mesh.light_line_style(RGBColor(244, 244, 244))
        .draw()
        .map_err(failed)?;
    for mark in marks {
        let area = Rectangle::new([(mark.from, least), (mark.to, most)], MARK.mix(0.12).filled());
        let begin = PathElement::new([(mark.from, least), (mark.from, most)], MARK.stroke_width(1));
        let name = Text::new(
            mark.name.clone(),
            (mark.from, most),
            ("sans-serif", 12).into_font().color(&MARK),
        );
        chart.draw_series([area]).map_err(failed)?;
        chart.draw_series([begin]).map_err(failed)?;
        chart.draw_series([name]).map_err(failed)?;
    }
    for (index, line) in lines.iter().enumerate() {
        let color = color(index);
        // What a logarithmic axis cannot show is left out.
        let points = line.points.iter().copied().filter(|(_, y)| *y >= least);
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))
            .map_err(failed)?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], color.stroke_width(3)));
    }
    chart
        .configure_series_labels()
        .border_style(BLACK.mix(0.3))
        .background_style(WHITE.mix(0.8))
        .draw()
        .map_err(failed)
}

/// A piece of a bar.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(crate) name: String,
    pub(crate) from: f64,
    pub(crate) to: f64,
    /// Pieces of one group have one color.
    pub(crate) group: usize,
}

/// One bar a piece, below each other, as operations' steps follow each other; names begin at the bars' right ends.
pub(crate) fn waterfall(title: &str, pieces: &[Piece], unit: &str) -> Result<String> {
    let rows = u32::try_from(pieces.len())?;
    let end = pieces.iter().map(|piece| piece.to).fold(1e-9, f64::max);
    draw((WIDTH, 46 + rows * 17), |root| {
        let at = |x: f64| scaled(8.0, 620.0, x / end);
        let style = ("sans-serif", 12);
        root.draw(&Text::new(title.to_owned(), (8, 4), ("sans-serif", 14)))
            .map_err(failed)?;
        for (row, piece) in (0..).zip(pieces) {
            let top = 28 + row * 17;
            let from = at(piece.from);
            let to = at(piece.to).max(from + 1);
            let bar = Rectangle::new([(from, top), (to, top + 13)], color(piece.group).filled());
            root.draw(&bar).map_err(failed)?;
            let length = super::shown(piece.to - piece.from);
            let text = format!("{length}  {}", piece.name);
            root.draw(&Text::new(text, (to + 6, top + 1), style))
                .map_err(failed)?;
        }
        let foot = 30 + i32::try_from(rows)? * 17;
        root.draw(&Text::new(format!("0 to {end:.1} {unit}"), (8, foot), style))
            .map_err(failed)
    })
}

/// Bars of the same length below each other, each divided: what shares are of.
pub(crate) fn shares(rows: &[(String, Vec<f64>)], names: &[String]) -> Result<String> {
    let (bars, legend) = (u32::try_from(rows.len())?, u32::try_from(names.len())?);
    draw((WIDTH, 16 + bars * 30 + legend * 17), |root| {
        let style = ("sans-serif", 12);
        for (row, (name, shares)) in (0..).zip(rows) {
            let top = 8 + row * 30;
            root.draw(&Text::new(name.clone(), (8, top + 4), style))
                .map_err(failed)?;
            let (mut before, whole) = (0.0, shares.iter().sum::<f64>().max(1e-9));
            for (index, share) in shares.iter().enumerate() {
                let at = |x: f64| scaled(190.0, 960.0, x / whole);
                let (from, to) = (at(before), at(before + share));
                before += share;
                root.draw(&Rectangle::new(
                    [(from, top), (to, top + 22)],
                    color(index).filled(),
                ))
                .map_err(failed)?;
            }
        }
        for (row, name) in names.iter().enumerate() {
            let top = 12 + i32::try_from(bars)? * 30 + i32::try_from(row)? * 17;
            root.draw(&Rectangle::new(
                [(190, top), (202, top + 12)],
                color(row).filled(),
            ))
            .map_err(failed)?;
            root.draw(&Text::new(name.clone(), (208, top), style))
                .map_err(failed)?;
        }
        Ok(())
    })
}

/// A pixel: `share` of `width` behind `left`.
fn scaled(left: f64, width: f64, share: f64) -> i32 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a pixel of a picture that is about 1,000 wide"
    )]
    let pixel = (left + width * share.clamp(0.0, 1.0)) as i32;
    pixel
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws on white.
fn draw(size: (u32, u32), on: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<String> {
    let mut picture = String::new();
    {
        let root = SVGBackend::with_string(&mut picture, size).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        on(&root)?;
        root.present().map_err(failed)?;
    }
    Ok(picture)
}

/// For `map_err`.
#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
pub(crate) fn failed<E: std::error::Error + Send + Sync>(
    error: plotters::drawing::DrawingAreaErrorKind<E>,
) -> anyhow::Error {
    anyhow!("the plot cannot be drawn: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const AXES: Axes<'static> = Axes {
        title: "latency",
        x: "s",
        y: "ms",
        log: true,
        x_shown: |x| format!("{x}"),
    };

    #[test]
    fn lines_and_marks_are_in_the_picture() {
        let line = |name: &str, points: &[(f64, f64)]| Line {
            name: name.to_owned(),
            points: points.to_vec(),
        };
        let mark = Mark {
            from: 1.0,
            to: 2.0,
            name: "kill volume-router".to_owned(),
        };
        let drawn = [
            line("p50", &[(0.0, 1.0), (3.0, 100.0)]),
            line("p99", &[(0.0, 0.0)]),
        ];
        for log in [true, false] {
            let picture = lines(&Axes { log, ..AXES }, &drawn, std::slice::from_ref(&mark)).unwrap();
            for wanted in ["latency", "p50", "p99", "kill volume-router", "</svg>"] {
                assert!(picture.contains(wanted), "{wanted}");
            }
            // Nothing at all.
            lines(&Axes { log, ..AXES }, &[], &[]).unwrap();
        }
    }

    #[test]
    fn bars_have_their_names() {
        let piece = Piece {
            name: "append".to_owned(),
            from: 1.0,
            to: 3.0,
            group: 0,
        };
        let picture = waterfall("write", &[piece], "us").unwrap();
        assert!(
            picture.contains("append") && picture.contains("2.0 us"),
            "{picture}"
        );
        let picture = shares(&[("all".to_owned(), vec![1.0, 3.0])], &["bus".to_owned()]).unwrap();
        assert!(picture.contains("all") && picture.contains("bus"), "{picture}");
    }
}
