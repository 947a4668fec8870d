//! A source file as the checks see it: without comments, without what stands in string literals, and with its tests
//! told apart.

/// A Rust file.
pub struct Source<'a> {
    /// The path from the root of the workspace.
    pub path: &'a str,
    /// The text as it stands.
    pub text: &'a str,
    /// The lines as code, numbered from 1, with whether they belong to the file's tests.
    lines: Vec<Line>,
}

/// A line of code.
pub struct Line {
    /// Counted from 1.
    pub number: usize,
    /// Without comment and without the insides of strings.
    pub code: String,
    /// In the tests at the end of the file, or in a file of tests.
    pub test: bool,
}

impl<'a> Source<'a> {
    /// Reads a file's text. Tests are taken to be what follows `#[cfg(test)]` on a module, for they stand last.
    pub fn new(path: &'a str, text: &'a str) -> Self {
        let mut test = path.starts_with("tests/") || path.ends_with("tests.rs") || path.contains("/tests/");
        let mut attribute = false;
        let mut lines = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let code = code(line);
            // `mod tests;` is a file of its own, and what follows it is not a test.
            test |= attribute && code.trim_start().starts_with("mod ") && code.contains('{');
            if !code.trim().is_empty() {
                attribute = code.trim() == "#[cfg(test)]" || (attribute && code.trim_start().starts_with("#["));
            }
            lines.push(Line { number: index + 1, code, test });
        }
        Self { path, text, lines }
    }

    /// All lines.
    pub fn lines(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter()
    }

    /// The lines that are not tests.
    pub fn program(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(|line| !line.test)
    }

    /// A complaint about a line.
    pub fn at(&self, line: &Line, what: &str) -> String {
        format!("{}:{}: {what}", self.path, line.number)
    }
}

/// A line without its comment and without what stands between quotes. It knows nothing of strings over several lines.
fn code(line: &str) -> String {
    let mut code = String::new();
    let mut chars = line.chars().peekable();
    let mut quoted = false;
    while let Some(char) = chars.next() {
        match char {
            '\\' if quoted => {
                chars.next();
            }
            // The quote of '"' opens nothing.
            '\'' if !quoted && chars.peek() == Some(&'"') => {
                chars.next();
            }
            '"' => {
                quoted = !quoted;
                code.push('"');
            }
            '/' if !quoted && chars.peek() == Some(&'/') => break,
            char if !quoted => code.push(char),
            _ => {}
        }
    }
    code
}

/// Whether `word` stands in `code` with no letter, digit or underscore before it, nor after it if it ends in one itself.
pub fn mentions(code: &str, word: &str) -> bool {
    let joins = |char: char| char.is_alphanumeric() || char == '_';
    code.match_indices(word).any(|(at, _)| {
        let after = code[at + word.len()..].chars().next();
        let open = word.ends_with(joins) && after.is_some_and(joins);
        !code[..at].ends_with(joins) && !open
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_are_no_code() {
        for (line, expect) in [
            ("let a = 1; // unsafe", "let a = 1; "),
            ("/// unsafe", ""),
            ("say(\"unsafe // \\\" still\", b)", "say(\"\", b)"),
            ("match c { '\"' => 1 } // x", "match c { ' => 1 } "),
        ] {
            assert_eq!(code(line), expect);
        }
    }

    #[test]
    fn words_are_whole_words() {
        assert!(mentions("unsafe { x }", "unsafe"));
        assert!(!mentions("unsafe_op_in_unsafe_fn", "unsafe"));
        assert!(mentions("rand::random()", "rand::"));
        assert!(!mentions("operand::random()", "rand::"));
    }

    #[test]
    fn tests_begin_at_their_module() {
        let text = "#[cfg(test)]\nuse a::b;\nfn c() {}\n#[cfg(test)]\n#[allow(x)]\nmod tests {\nfn d() {}\n}\n";
        let source = Source::new("src/x.rs", text);
        let tests: Vec<usize> = source.lines().filter(|line| line.test).map(|line| line.number).collect();
        assert_eq!(tests, [6, 7, 8]);
        assert!(Source::new("tests/x.rs", "fn a() {}").lines().all(|line| line.test));
    }
}
