//! A page: one HTML file with everything in it, to be read without a network and kept beside what it is about.
//!
//! Keeps: the text so far.
//! Order: as it is added.
//! Crash: see `document::replace`.
//! Knows HTML; everything that comes as text is escaped.

use super::Grid;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1240px;padding:0 1em;color:#1b1f24}\
h1,h2,h3{line-height:1.2;margin:1.6em 0 .5em}table{border-collapse:collapse;margin:.6em 0;font-size:13px}\
th,td{padding:3px 10px;border-bottom:1px solid #dfe3e8;text-align:right;white-space:nowrap}th{background:#f4f6f8}\
.t{text-align:left}figure{margin:1em 0;overflow-x:auto}figcaption{font-size:13px;color:#57606a}\
.bad{background:#ffe9e6;border-left:4px solid #c8321e;padding:.5em 1em}.note{color:#57606a}svg{max-width:100%;height:auto}";

/// A page.
#[derive(Debug)]
pub(crate) struct Page {
    title: String,
    body: String,
}

impl Page {
    pub(crate) fn new(title: &str) -> Self {
        let body = format!("<h1>{}</h1>\n", escaped(title));
        Self {
            title: title.to_owned(),
            body,
        }
    }

    pub(crate) fn heading(&mut self, text: &str) {
        self.element("h2", text);
    }

    pub(crate) fn subheading(&mut self, text: &str) {
        self.element("h3", text);
    }

    pub(crate) fn paragraph(&mut self, text: &str) {
        self.element("p", text);
    }

    /// Something that a reader must not miss.
    pub(crate) fn warning(&mut self, text: &str) {
        self.body
            .push_str(&format!("<p class=\"bad\">{}</p>\n", escaped(text)));
    }

    fn element(&mut self, name: &str, text: &str) {
        self.body
            .push_str(&format!("<{name}>{}</{name}>\n", escaped(text)));
    }

    pub(crate) fn table(&mut self, grid: &Grid) {
        let cells = |element: &str, cells: &[String]| {
            let cell = |(index, text): (usize, &String)| {
                let class = if index < grid.texts { " class=\"t\"" } else { "" };
                format!("<{element}{class}>{}</{element}>", escaped(text))
            };
            let cells: String = cells.iter().enumerate().map(cell).collect();
            format!("<tr>{cells}</tr>\n")
        };
        self.body.push_str("<table>\n");
        self.body.push_str(&cells("th", &grid.headings));
        for row in &grid.rows {
            self.body.push_str(&cells("td", row));
        }
        self.body.push_str("</table>\n");
    }

    /// A picture (SVG as it is) with what it shows.
    pub(crate) fn figure(&mut self, svg: &str, caption: &str) {
        let caption = escaped(caption);
        self.body.push_str(&format!(
            "<figure>{svg}<figcaption>{caption}</figcaption></figure>\n"
        ));
    }

    /// The whole file.
    pub(crate) fn finish(self) -> String {
        let (title, body) = (escaped(&self.title), self.body);
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
             <style>{STYLE}</style></head>\n<body>\n{body}</body></html>\n"
        )
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text_and_a_page_needs_no_other_file() {
        let mut page = Page::new("a <b> & \"c\"");
        let mut grid = Grid::new(1, &["name", "figure"]);
        grid.row(vec!["<script>".to_owned(), "1".to_owned()]);
        page.table(&grid);
        page.figure("<svg></svg>", "one");
        let html = page.finish();
        assert!(
            html.contains("a &lt;b&gt; &amp; &quot;c&quot;") && html.contains("&lt;script&gt;"),
            "{html}"
        );
        assert!(
            !html.contains("<script") && !html.contains("src=") && !html.contains("href="),
            "{html}"
        );
    }
}
