//! The plot of what grows and what does not: one picture with a panel for each cause.
//!
//! Keeps: nothing.
//! Order: points in the order of their causes.
//! Crash: nothing; the picture is made in memory.
//! Knows no cluster.

use anyhow::Result;
use plotters::chart::ChartBuilder;
use plotters::drawing::IntoDrawingArea as _;
use plotters::element::Circle;
use plotters::prelude::{IntoLogRange as _, SVGBackend};
use plotters::series::LineSeries;
use plotters::style::{BLACK, BLUE, Color as _, RED, WHITE};

use crate::report::picture::failed;

/// Times of one cause: how much of it, a restart, a clone; both in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Point {
    pub(super) cause: f64,
    pub(super) restart_ms: f64,
    pub(super) clone_ms: f64,
}

/// A panel.
pub(super) struct Panel<'a> {
    pub(super) title: &'a str,
    pub(super) cause: &'a str,
    pub(super) points: &'a [Point],
}

/// Draws panels beside each other as SVG.
pub(super) fn draw(panels: &[Panel<'_>]) -> Result<String> {
    let mut picture = String::new();
    {
        let root = SVGBackend::with_string(&mut picture, (900, 380)).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let areas = root.split_evenly((1, panels.len().max(1)));
        for (area, panel) in areas.iter().zip(panels) {
            let causes = panel.points.iter().map(|point| point.cause);
            // A decade at least: plotters never ends with the marks of a logarithmic axis that has none.
            let least = causes.clone().reduce(f64::min).unwrap_or(1.0);
            let most = causes.fold(least * 10.0, f64::max);
            let times = panel
                .points
                .iter()
                .flat_map(|point| [point.restart_ms, point.clone_ms]);
            let top = times.fold(1.0_f64, f64::max) * 1.3;
            let mut chart = ChartBuilder::on(area)
                .caption(panel.title, ("sans-serif", 16))
                .margin(12)
                .x_label_area_size(40)
                .y_label_area_size(56)
                .build_cartesian_2d((least..most).log_scale(), 0.0..top)
                .map_err(failed)?;
            chart
                .configure_mesh()
                .x_desc(panel.cause)
                .y_desc("ms")
                .draw()
                .map_err(failed)?;
            for (name, color, time) in [
                (
                    "restart to first byte",
                    BLUE,
                    (|point| point.restart_ms) as fn(&Point) -> f64,
                ),
                ("clone to first byte", RED, |point| point.clone_ms),
            ] {
                let line = panel.points.iter().map(|point| (point.cause, time(point)));
                chart
                    .draw_series(LineSeries::new(line.clone(), color.stroke_width(2)))
                    .map_err(failed)?
                    .label(name)
                    .legend(move |(x, y)| Circle::new((x + 8, y), 4, color.filled()));
                chart
                    .draw_series(line.map(|at| Circle::new(at, 3, color.filled())))
                    .map_err(failed)?;
            }
            chart
                .configure_series_labels()
                .border_style(BLACK)
                .background_style(WHITE)
                .draw()
                .map_err(failed)?;
        }
        root.present().map_err(failed)?;
    }
    Ok(picture)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_panel_is_in_the_picture() {
        let points = [1.0, 10.0, 1000.0].map(|cause| Point {
            cause,
            restart_ms: 300.0,
            clone_ms: 20.0,
        });
        let panel = |title| Panel {
            title,
            cause: "snapshots",
            points: &points,
        };
        let picture = draw(&[panel("one"), panel("other")]).unwrap();
        assert!(
            picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"),
            "{picture}"
        );
        for wanted in ["one", "other", "restart to first byte", "snapshots"] {
            assert!(picture.contains(wanted), "{wanted}");
        }
        // One point, and none.
        draw(&[Panel {
            points: &points[..1],
            ..panel("one")
        }])
        .unwrap();
        draw(&[Panel {
            points: &[],
            ..panel("one")
        }])
        .unwrap();
    }
}
