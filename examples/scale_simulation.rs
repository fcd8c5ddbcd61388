//! How the cluster's control logic grows from 10 to 10,000 nodes, in simulation: what a task waits
//! for its start, the messages it costs, and how busy the head is.
//!
//! `cargo run --release --features cluster --example scale_simulation -- [--quick] [--plot FILE.svg]`
//!
//! Every node has two CPUs and runs tasks of 10 ms at 70% load. In the first series each node submits
//! its own; in the second one node of ten submits for all, so that nine tasks of ten must move. The
//! head's cost per message is measured here and now, in a first run, and taken into account in a second.

use outray::cluster::simulation::{Options, Report, run};
use plotters::prelude::*;
use std::{error::Error, time::Duration};

struct Row {
    nodes: usize,
    report: Report,
    /// Of a message.
    head_cost: Duration,
}

impl Row {
    fn per_task(&self, count: usize) -> f64 {
        count as f64 / self.report.ended as f64
    }

    /// The share of its time that the head works.
    fn head_load(&self) -> f64 {
        self.head_cost.as_secs_f64() * self.report.head_messages as f64 / self.report.time.as_secs_f64()
    }
}

fn measure(nodes: usize, nodes_per_driver: usize) -> Result<Row, Box<dyn Error>> {
    let drivers = (nodes / nodes_per_driver).max(1);
    let capacity = 2 * nodes as u64 * 100; // tasks of 10 ms in a second, by two CPUs each
    let interval = Duration::from_secs(drivers as u64).mul_f64(1.0 / (0.7 * capacity as f64));
    let options = Options {
        nodes,
        drivers,
        tasks: 50 * nodes,
        interval,
        task_time: Duration::from_millis(10),
        mixed: false,
        measure_head: true,
        ..Options::with_seed(1)
    };
    let first = run(&options)?;
    let head_cost = first.head_time / first.head_messages.max(1) as u32;
    let report = run(&Options { head_message_time: head_cost, measure_head: false, ..options })?;
    Ok(Row { nodes, report, head_cost })
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (mut quick, mut plot) = (false, None);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => quick = true,
            "--plot" => plot = Some(arguments.next().ok_or("--plot needs a file name")?),
            other => return Err(format!("unknown argument {other:?}; known are --quick and --plot FILE.svg").into()),
        }
    }
    let sizes: &[usize] = if quick { &[10, 100] } else { &[10, 30, 100, 300, 1_000, 3_000, 10_000] };
    let mut series = Vec::new();
    for (name, nodes_per_driver) in [("each node submits", 1), ("one node of ten submits", 10)] {
        println!("{name}:");
        println!("   nodes    tasks   start p50   start p99  messages/task  by the head  head us/message  head load");
        let mut rows = Vec::new();
        for nodes in sizes {
            let row = measure(*nodes, nodes_per_driver)?;
            println!(
                "{:>8} {:>8} {:>9.2}ms {:>9.2}ms {:>14.2} {:>12.2} {:>16.2} {:>9.1}%",
                row.nodes,
                row.report.ended,
                row.report.latency_p50.as_secs_f64() * 1e3,
                row.report.latency_p99.as_secs_f64() * 1e3,
                row.per_task(row.report.messages),
                row.per_task(row.report.head_task_messages),
                row.head_cost.as_secs_f64() * 1e6,
                row.head_load() * 100.0,
            );
            rows.push(row);
        }
        series.push((name, rows));
    }
    if let Some(file) = plot {
        draw(&file, &series)?;
        println!("the plot is in {file}");
    }
    Ok(())
}

fn draw(file: &str, series: &[(&str, Vec<Row>)]) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(file, (1080, 380)).into_drawing_area();
    root.fill(&WHITE)?;
    type Value = fn(&Row) -> f64;
    let charts: [(&str, Value); 3] = [
        ("submission to start, p99 [ms]", |row| row.report.latency_p99.as_secs_f64() * 1e3),
        ("messages a task, all", |row| row.per_task(row.report.messages)),
        ("head load [%]", |row| row.head_load() * 100.0),
    ];
    let colours = [BLUE, RED];
    for ((title, value), area) in charts.iter().zip(root.split_evenly((1, 3))) {
        let values = || series.iter().flat_map(|(_, rows)| rows).map(value);
        let (least, most) = values().fold((f64::MAX, f64::MIN), |(least, most), v| (least.min(v), most.max(v)));
        // Whole decades, so that each axis has labels.
        let (least, most) = (10f64.powf(least.log10().floor()), 10f64.powf(most.log10().ceil()));
        let nodes = || series.iter().flat_map(|(_, rows)| rows).map(|row| row.nodes as f64);
        let (fewest, all) = nodes().fold((f64::MAX, f64::MIN), |(least, most), v| (least.min(v), most.max(v)));
        let mut chart = ChartBuilder::on(&area)
            .caption(*title, ("sans-serif", 17))
            .margin(10)
            .margin_right(24)
            .x_label_area_size(36)
            .y_label_area_size(52)
            .build_cartesian_2d((fewest..all).log_scale(), (least..most).log_scale())?;
        let label = |value: &f64| value.to_string();
        let mut mesh = chart.configure_mesh();
        mesh.x_desc("nodes")
            .light_line_style(TRANSPARENT)
            .x_label_formatter(&label)
            .y_label_formatter(&label)
            .draw()?;
        for ((name, rows), colour) in series.iter().zip(colours) {
            let points = rows.iter().map(|row| (row.nodes as f64, value(row)));
            let line = LineSeries::new(points, colour.stroke_width(2)).point_size(3);
            let legend = move |(x, y)| PathElement::new([(x, y), (x + 14, y)], colour);
            chart.draw_series(line)?.label(*name).legend(legend);
        }
        chart
            .configure_series_labels()
            .border_style(BLACK)
            .background_style(WHITE)
            .position(SeriesLabelPosition::UpperLeft)
            .draw()?;
    }
    root.present()?;
    Ok(())
}
