//! What a template that somebody wrote may contain: a small part of MiniJinja, so that its cost is
//! bounded by construction, and not by fuel alone.
//!
//! Fuel counts steps, and a step can double a string. So there is nothing here that makes a value
//! larger or keeps one: no `set`, macros, calls, lists, concatenation or multiplication. What is not
//! on the list is refused. Parsers recurse, so the length of a tag and of a chain is bounded before
//! anything is parsed.

use minijinja::machinery::ast::{BinOpKind, CallArg, Expr, Stmt};
use minijinja::machinery::{Span, Token, WhitespaceConfig, parse, tokenize};
use minijinja::syntax::SyntaxConfig;

use super::engine::{FILTERS, TESTS};
use super::template::Error;

/// Most tokens in one tag: parsers and compilers recurse over them.
const MAX_TAG_TOKENS: usize = 100;
/// Most `elif` in a template, each of which is nested in the one before.
const MAX_ELIFS: usize = 30;
/// Deepest nesting of `if` and `for`.
const MAX_NESTING: usize = 20;

/// The blocks that a template may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// One line.
    Subject,
    /// The plain text.
    Text,
    /// The HTML, within the frame, or a document of its own.
    Html,
}

impl Block {
    fn named(name: &str) -> Option<Self> {
        match name {
            "subject" => Some(Self::Subject),
            "text" => Some(Self::Text),
            "html" => Some(Self::Html),
            _ => None,
        }
    }
}

/// The source of a template's blocks; a missing one is the built-in template's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Blocks<'a> {
    pub(super) subject: Option<Part<'a>>,
    pub(super) text: Option<Part<'a>>,
    pub(super) html: Option<Part<'a>>,
}

/// A block's source, and the line on which it begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    pub(super) source: &'a str,
    pub(super) line: usize,
}

/// Takes a template apart, and checks all of it.
pub(super) fn blocks(source: &str) -> Result<Blocks<'_>, Error> {
    let blocks = split(source)?;
    for part in [blocks.subject, blocks.text, blocks.html].into_iter().flatten() {
        let parsed = parse(part.source, "template", SyntaxConfig, WhitespaceConfig::default());
        let parsed = parsed.map_err(|error| Error::at(part.line, &error))?;
        Judge { line: part.line }.statement(&parsed, 0)?;
    }
    Ok(blocks)
}

/// Where the scanner is.
#[derive(Clone, Copy)]
enum Place {
    Outside,
    Inside { block: Block, start: usize, line: usize },
}

fn split(source: &str) -> Result<Blocks<'_>, Error> {
    let mut blocks = Blocks::default();
    let mut place = Place::Outside;
    let mut tokens = tokenize(source, false, SyntaxConfig, WhitespaceConfig::default());
    let mut elifs = 0;
    while let Some(token) = tokens.next() {
        let (token, span) = token.map_err(|error| Error::at(1, &error))?;
        let at = |message: &str| Error::new(line_of(span), message);
        match token {
            Token::TemplateData(data)
                if matches!(place, Place::Outside) && !data.trim().is_empty() =>
            {
                return Err(at("text must stand in one of the blocks subject, text and html"));
            }
            Token::VariableStart => {
                if matches!(place, Place::Outside) {
                    return Err(at("must stand in one of the blocks subject, text and html"));
                }
                tag(&mut tokens, span)?;
            }
            Token::BlockStart => {
                let Tag { words, end } = tag(&mut tokens, span)?;
                let word = words.first().copied().unwrap_or_default();
                elifs += usize::from(word == "elif");
                if elifs > MAX_ELIFS {
                    return Err(at(&format!("there may be at most {MAX_ELIFS} elif")));
                }
                place = step(place, &words, (span, end), source, &mut blocks)?;
            }
            _ => {}
        }
    }
    match place {
        Place::Outside => Ok(blocks),
        Place::Inside { line, .. } => Err(Error::new(line, "the block has no endblock")),
    }
}

/// Goes on by one statement's tag.
fn step<'a>(
    place: Place,
    words: &[&str],
    (start, end): (Span, Span),
    source: &'a str,
    blocks: &mut Blocks<'a>,
) -> Result<Place, Error> {
    let at = |message: &str| Error::new(line_of(start), message);
    match (place, words.first().copied().unwrap_or_default()) {
        (Place::Outside, "block") => {
            let block = words.get(1).and_then(|name| Block::named(name));
            let block = block.ok_or_else(|| at("a block must be subject, text or html"))?;
            let line = usize::from(end.end_line).max(1);
            Ok(Place::Inside { block, start: offset(end.end_offset), line })
        }
        (Place::Outside, _) => Err(at("must stand in one of the blocks subject, text and html")),
        (Place::Inside { .. }, "block") => Err(at("a block must not stand in another one")),
        (Place::Inside { block, start: from, line }, "endblock") => {
            let part =
                source.get(from..offset(start.start_offset)).map(|source| Part { source, line });
            let place = match block {
                Block::Subject => &mut blocks.subject,
                Block::Text => &mut blocks.text,
                Block::Html => &mut blocks.html,
            };
            if place.is_some() {
                return Err(at("the block is there twice"));
            }
            *place = part;
            Ok(Place::Outside)
        }
        (inside, _) => Ok(inside),
    }
}

/// A statement's words, and where its tag ends.
struct Tag<'a> {
    words: Vec<&'a str>,
    end: Span,
}

/// Reads to the end of a tag, which must not be too long.
fn tag<'a>(
    tokens: &mut impl Iterator<Item = Result<(Token<'a>, Span), minijinja::Error>>,
    start: Span,
) -> Result<Tag<'a>, Error> {
    let mut words = Vec::new();
    for _ in 0..MAX_TAG_TOKENS {
        match tokens.next() {
            Some(Ok((Token::VariableEnd | Token::BlockEnd, end))) => return Ok(Tag { words, end }),
            Some(Ok((Token::Ident(word), _))) => words.push(word),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(Error::at(1, &error)),
            None => return Err(Error::new(line_of(start), "the tag does not end")),
        }
    }
    let message = format!("the tag is too long: at most {MAX_TAG_TOKENS} words and signs");
    Err(Error::new(line_of(start), &message))
}

fn line_of(span: Span) -> usize {
    usize::from(span.start_line).max(1)
}

fn offset(bytes: u32) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Says what of a parsed part may not be used.
struct Judge {
    /// The line of the template on which the part begins.
    line: usize,
}

impl Judge {
    fn refuse(&self, span: Span, what: &str) -> Error {
        Error::new(self.line + usize::from(span.start_line).max(1) - 1, what)
    }

    fn statements(&self, statements: &[Stmt<'_>], depth: usize) -> Result<(), Error> {
        statements.iter().try_for_each(|statement| self.statement(statement, depth))
    }

    fn statement(&self, statement: &Stmt<'_>, depth: usize) -> Result<(), Error> {
        match statement {
            Stmt::Template(template) => self.statements(&template.children, depth),
            Stmt::EmitRaw(_) => Ok(()),
            Stmt::EmitExpr(emit) => self.expression(&emit.expr),
            Stmt::ForLoop(each) => {
                self.check_depth(each.span(), depth)?;
                if each.recursive {
                    return Err(self.refuse(each.span(), "a loop must not be recursive"));
                }
                self.expression(&each.iter)?;
                each.filter_expr.iter().try_for_each(|filter| self.expression(filter))?;
                self.statements(&each.body, depth + 1)?;
                self.statements(&each.else_body, depth + 1)
            }
            Stmt::IfCond(condition) => {
                self.check_depth(condition.span(), depth)?;
                self.expression(&condition.expr)?;
                self.statements(&condition.true_body, depth + 1)?;
                // An elif is an if in here; there are few of them.
                self.statements(&condition.false_body, depth)
            }
            _ => Err(Error::new(
                self.line,
                "only if and for statements may be used in a block, no set, with, macro, filter, \
                 include, import, extends, call or autoescape",
            )),
        }
    }

    fn check_depth(&self, span: Span, depth: usize) -> Result<(), Error> {
        if depth < MAX_NESTING {
            return Ok(());
        }
        let what = format!("if and for may be nested at most {MAX_NESTING} deep");
        Err(self.refuse(span, &what))
    }

    fn expression(&self, expression: &Expr<'_>) -> Result<(), Error> {
        match expression {
            Expr::Var(_) | Expr::Const(_) => Ok(()),
            Expr::UnaryOp(of) => self.expression(&of.expr),
            Expr::BinOp(of) => {
                let grows = matches!(
                    of.op,
                    BinOpKind::Add | BinOpKind::Mul | BinOpKind::Pow | BinOpKind::Concat
                );
                if grows {
                    return Err(self.refuse(of.span(), "the operators + * ** ~ must not be used"));
                }
                self.expression(&of.left)?;
                self.expression(&of.right)
            }
            Expr::Compare(of) => {
                self.expression(&of.expr)?;
                of.ops.iter().try_for_each(|op| self.expression(&op.expr))
            }
            Expr::IfExpr(of) => {
                self.expression(&of.test_expr)?;
                self.expression(&of.true_expr)?;
                of.false_expr.iter().try_for_each(|expr| self.expression(expr))
            }
            Expr::GetAttr(of) => self.expression(&of.expr),
            Expr::GetItem(of) => {
                self.expression(&of.expr)?;
                self.expression(&of.subscript_expr)
            }
            Expr::Filter(of) => {
                if !FILTERS.contains(&of.name) {
                    let what = format!("there is no filter {}; {}", of.name, named(&FILTERS));
                    return Err(self.refuse(of.span(), &what));
                }
                of.expr.iter().try_for_each(|expr| self.expression(expr))?;
                self.arguments(&of.args, of.span())
            }
            Expr::Test(of) => {
                if !TESTS.contains(&of.name) {
                    let what = format!("there is no test {}; {}", of.name, named(&TESTS));
                    return Err(self.refuse(of.span(), &what));
                }
                self.expression(&of.expr)?;
                self.arguments(&of.args, of.span())
            }
            Expr::Call(of) => Err(self.refuse(of.span(), "functions must not be called")),
            Expr::List(of) => Err(self.refuse(of.span(), "lists must not be written out")),
            Expr::Map(of) => Err(self.refuse(of.span(), "maps must not be written out")),
            Expr::Slice(of) => Err(self.refuse(of.span(), "slices must not be used")),
        }
    }

    fn arguments(&self, arguments: &[CallArg<'_>], span: Span) -> Result<(), Error> {
        arguments.iter().try_for_each(|argument| match argument {
            CallArg::Pos(expr) | CallArg::Kwarg(_, expr) => self.expression(expr),
            CallArg::PosSplat(_) | CallArg::KwargSplat(_) => {
                Err(self.refuse(span, "arguments must not be splatted"))
            }
        })
    }
}

fn named(names: &[&str]) -> String {
    format!("there are {}", names.join(", "))
}
