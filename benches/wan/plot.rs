//! Goodput over time as an SVG file: one line for each tool.

use std::fmt::Write as _;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 64.0;
const TOP: f64 = 40.0;
const RIGHT: f64 = 150.0;
const BOTTOM: f64 = 48.0;

/// Distinct without red beside green (Okabe and Ito, "Color Universal Design", 2008).
const COLOURS: [&str; 8] = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"];

/// One tool: seconds and Mbit/s.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// The file's text. `most` is the link's rate in Mbit/s, if it has one.
pub(crate) fn svg(title: &str, lines: &[Line], most: Option<f64>) -> String {
    let all = || lines.iter().flat_map(|l| l.points.iter());
    let seconds = step(all().map(|p| p.0).fold(1.0, f64::max));
    let rate = step(all().map(|p| p.1).fold(most.unwrap_or(1.0), f64::max));
    let x = |s: f64| LEFT + s / seconds.0 * (WIDTH - LEFT - RIGHT);
    let y = |r: f64| HEIGHT - BOTTOM - r / rate.0 * (HEIGHT - TOP - BOTTOM);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"22\" \
         font-size=\"14\">{title}</text>\n"
    );
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    for at in ticks(rate) {
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {0:.1}H{right}\" stroke=\"#ddd\"/><text x=\"{1}\" y=\"{2:.1}\" text-anchor=\"end\">{at}</text>",
            y(at),
            LEFT - 8.0,
            y(at) + 4.0
        );
    }
    for at in ticks(seconds) {
        let _ = writeln!(
            out,
            "<path d=\"M{0:.1} {TOP}V{bottom}\" stroke=\"#eee\"/><text x=\"{0:.1}\" y=\"{1}\" \
             text-anchor=\"middle\">{at}</text>",
            x(at),
            bottom + 18.0
        );
    }
    if let Some(most) = most {
        let _ = writeln!(out, "<path d=\"M{LEFT} {:.1}H{right}\" stroke=\"#888\" stroke-dasharray=\"6 4\"/>", y(most));
    }
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">seconds</text><text x=\"{LEFT}\" y=\"{}\">Mbit/s arriving</text>",
        f64::midpoint(LEFT, right),
        HEIGHT - 12.0,
        TOP - 4.0
    );
    for (number, (line, colour)) in (0_u16..).zip(lines.iter().zip(COLOURS.iter().cycle())) {
        let points: Vec<String> = line.points.iter().map(|(s, r)| format!("{:.1},{:.1}", x(*s), y(*r))).collect();
        let down = TOP + 12.0 + 18.0 * f64::from(number);
        let _ = writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\" points=\"{}\"/><path d=\"M{} {down}h18\" \
             stroke=\"{colour}\" stroke-width=\"3\"/><text x=\"{}\" y=\"{}\">{}</text>",
            points.join(" "),
            right + 12.0,
            right + 36.0,
            down + 4.0,
            line.name
        );
    }
    out.push_str("</svg>\n");
    out
}

/// The end of an axis that shows a value, and the distance of its marks: 1, 2 or 5 times a power of ten.
fn step(value: f64) -> (f64, f64) {
    let ten = 10_f64.powf((value / 5.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|f| f * ten).find(|s| value / s <= 6.0).unwrap_or(ten);
    ((value / step).ceil() * step, step)
}

fn ticks((end, step): (f64, f64)) -> impl Iterator<Item = f64> {
    (0..=12_u16).map(move |i| (f64::from(i) * step * 1e6).round() / 1e6).take_while(move |at| *at <= end * 1.0001)
}
