//! Faults written into the source text, each beside what it replaces, so that one build holds all of them.

use std::ops::Range;

/// A place in a file and what a fault puts there: `at` is text of the file with «marks» around what is replaced, or
/// `«»` where something is added. It must occur exactly once. Any white space stands for any other.
#[derive(Clone, Copy)]
pub(crate) struct Edit {
    pub(crate) at: &'static str,
    pub(crate) to: &'static str,
}

/// An edit that was found.
struct Place {
    range: Range<usize>,
    number: usize,
    to: &'static str,
}

/// The text with each edit under the condition that its mutant, which has that number, is the one that is run.
pub(crate) fn insert(text: &str, edits: &[(usize, Edit)]) -> Result<String, String> {
    let mut places = Vec::new();
    for &(number, Edit { at, to }) in edits {
        let range =
            find(text, at).map_err(|found| format!("mutant {number}: {found} times, not once: {at}"))?;
        places.push(Place { range, number, to });
    }
    places.sort_by_key(|place| (place.range.start, std::cmp::Reverse(place.range.end)));
    Ok(render(text, 0..text.len(), &places))
}

/// Where the marked part lies, or how often the whole was found.
fn find(text: &str, at: &str) -> Result<Range<usize>, usize> {
    let (before, rest) = at.split_once('«').expect("an edit marks its place");
    let (marked, after) = rest.split_once('»').expect("a mark is closed");
    let whole = [before, marked, after].concat();
    let found: Vec<usize> =
        text.char_indices().map(|(at, _)| at).filter(|&at| matched(&text[at..], &whole).is_some()).collect();
    let [start] = found[..] else { return Err(found.len()) };
    let length =
        |pattern: &str, from: usize| matched(&text[from..], pattern).expect("part of what was found");
    let from = start + length(before, start);
    Ok(from..from + length(marked, from))
}

/// How many bytes of the text the pattern takes, if the text begins with it.
fn matched(text: &str, pattern: &str) -> Option<usize> {
    let mut rest = text;
    let mut pattern = pattern;
    while let Some(next) = pattern.chars().next() {
        if next.is_whitespace() {
            let trimmed = rest.trim_start();
            if trimmed.len() == rest.len() {
                return None;
            }
            (rest, pattern) = (trimmed, pattern.trim_start());
        } else {
            (rest, pattern) = (rest.strip_prefix(next)?, &pattern[next.len_utf8()..]);
        }
    }
    Some(text.len() - rest.len())
}

/// A range of the text with the places in it, which are sorted. Places are apart, equal, or within each other.
fn render(text: &str, range: Range<usize>, mut places: &[Place]) -> String {
    let mut out = String::new();
    let mut at = range.start;
    while let Some(first) = places.first() {
        let Range { start, end } = first.range;
        let equal = places.iter().take_while(|place| place.range == first.range).count();
        let within = places.iter().take_while(|place| place.range.start < end || place.range == first.range);
        let (group, rest) = places.split_at(within.count());
        assert!(group.iter().all(|place| place.range.end <= end), "two edits cross: {:?}", &text[start..end]);
        out += &text[at..start];
        out += &choice(&group[..equal], &render(text, start..end, &group[equal..]));
        (at, places) = (end, rest);
    }
    out + &text[at..range.end]
}

/// Statements stay statements, and an expression becomes one that can stand anywhere.
fn choice(places: &[Place], original: &str) -> String {
    let mut choice = String::new();
    for Place { number, to, .. } in places {
        choice += &format!("if crate::mutant({number}) {{ {to} }} else ");
    }
    choice += &format!("{{ {original} }}");
    let is_statement = original.trim().is_empty() || original.ends_with([';', '}']);
    if is_statement { choice } else { format!("({choice})") }
}

#[test]
fn edits_at_one_place_and_within_each_other_all_find_their_text() {
    let text = "let a = b\n    + c;\nd(e);";
    let edit = |at, to| Edit { at, to };
    let edits = [
        (1, edit("a = «b + c»;", "0")),
        (2, edit("+ «c»", "9")),
        (3, edit("«d(e);»", "")),
        (4, edit("d(«e»)", "f")),
        (5, edit("«d(e);»", "g();")),
        (6, edit(";«» d", "h();")),
    ];
    let expected = "let a = (if crate::mutant(1) { 0 } else { b\n    + (if crate::mutant(2) { 9 } else { c }) });\
        if crate::mutant(6) { h(); } else {  }\n\
        if crate::mutant(3) {  } else if crate::mutant(5) { g(); } else { d((if crate::mutant(4) { f } else { e })); }";
    assert_eq!(insert(text, &edits).unwrap(), expected);
}

#[test]
fn text_that_is_not_there_or_there_twice_is_an_error() {
    let edit = |at| [(7, Edit { at, to: "" })];
    assert_eq!(insert("a b a", &edit("«c»")).unwrap_err(), "mutant 7: 0 times, not once: «c»");
    assert_eq!(insert("a b a", &edit("«a»")).unwrap_err(), "mutant 7: 2 times, not once: «a»");
    assert!(insert("a b a", &edit("b «a»")).is_ok());
}
