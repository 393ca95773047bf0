//! The names that a template uses: those that there never are, said when it is stored, and those that
//! there were not, said when it fails.

use minijinja::machinery::ast::{CallArg, Expr, Stmt};
use minijinja::machinery::{Span, WhitespaceConfig, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};

use super::syntax::Part;
use super::template::Error;

/// What a template sees, and of what each has: nothing where any name may be one. A test compares it
/// with the document.
pub(super) const SEEN: [(&str, &[&str]); 13] = [
    ("data", &[]),
    ("digest", &[]),
    ("digest_omitted", &[]),
    ("event", &["id", "type", "subject", "time", "labels"]),
    ("lead", &[]),
    ("link", &["url", "label", "host"]),
    ("locale", &["lang", "dir", "start", "time_zone"]),
    ("look", &["logo_url", "color", "on_color", "footer"]),
    ("omitted", &[]),
    ("rows", &[]),
    ("tenant", &["name", "environment"]),
    ("title", &[]),
    ("unsubscribe_url", &[]),
];
/// What a loop has besides its own variables.
const LOOP: &str = "loop";

/// A value that a template asks for, such as `data.customer.name` or `data.items[0]`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Use {
    path: Vec<Step>,
    /// The line in its part, from 1.
    line: usize,
    /// Whether it begins with a variable of a loop.
    is_of_loop: bool,
    /// Whether the template asks if it is there, so that it may be missing.
    is_asked: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Name(String),
    Index(i64),
}

/// Refuses names that are never there, whatever the event is. `fields` are all that payloads may have;
/// `None` when they may have any.
pub(super) fn check(part: Part<'_>, fields: Option<&[String]>) -> Result<(), Error> {
    let unknown = uses(part).into_iter().filter(|used| !used.is_of_loop).find_map(|used| {
        let Some(Step::Name(root)) = used.path.first() else { return None };
        if let ("data", Some(fields), Some(Step::Name(field))) =
            (root.as_str(), fields, used.path.get(1))
            && !used.is_asked
            && !fields.contains(field)
        {
            let path = format!("{root}.{field}");
            return Some((used.line, missing(&path, &fields.join(", "))));
        }
        let Some((_, fields)) = SEEN.iter().find(|(name, _)| name == root) else {
            let names: Vec<_> = SEEN.iter().map(|(name, _)| *name).collect();
            return Some((used.line, missing(root, &names.join(", "))));
        };
        match used.path.get(1) {
            Some(Step::Name(field)) if !fields.is_empty() && !fields.contains(&field.as_str()) => {
                let path = format!("{root}.{field}");
                Some((used.line, missing(&path, &fields.join(", "))))
            }
            _ => None,
        }
    });
    match unknown {
        Some((line, message)) => Err(Error::new(part.line + line - 1, &message)),
        None => Ok(()),
    }
}

/// The fields that payloads of a JSON Schema may have at the top; `None` when others may stand beside them.
pub(super) fn fields_of(json_schema: &str) -> Option<Vec<String>> {
    let schema: serde_json::Value = serde_json::from_str(json_schema).ok()?;
    let is_closed = schema.get("additionalProperties") == Some(&serde_json::Value::Bool(false))
        && schema.get("patternProperties").is_none();
    let properties = schema.get("properties").filter(|_| is_closed)?.as_object()?;
    Some(properties.keys().cloned().collect())
}

fn missing(path: &str, names: &str) -> String {
    format!("undefined value: there is no {path}; there are {names}")
}

/// The value that was not there when a part failed on `line` of it, as far as that can be told.
pub(super) fn absent(part: Part<'_>, line: usize, document: &Value) -> Option<String> {
    let all: Vec<_> = uses(part).into_iter().filter(|used| !used.is_asked).collect();
    let is_here = |used: &&Use| used.line == line;
    let here = all.iter().filter(is_here).find_map(|used| used.absent_in(document));
    // A tag may have several lines.
    here.or_else(|| {
        // What a loop's variable has cannot be looked up; when it is the only one, it was that.
        let mut of_loop = all.iter().filter(is_here).filter(|used| used.is_of_loop);
        let first = of_loop.next().filter(|_| of_loop.next().is_none());
        first.map(|used| shown(&used.path))
    })
    .or_else(|| all.iter().find_map(|used| used.absent_in(document)))
}

impl Use {
    /// The path up to what is not in `document`.
    fn absent_in(&self, document: &Value) -> Option<String> {
        if self.is_of_loop {
            return None;
        }
        let mut value = document.clone();
        for (index, step) in self.path.iter().enumerate() {
            value = match step {
                Step::Name(name) => value.get_attr(name).unwrap_or_default(),
                Step::Index(at) => value.get_item(&Value::from(*at)).unwrap_or_default(),
            };
            if value.kind() == ValueKind::Undefined {
                return self.path.get(..=index).map(shown);
            }
        }
        None
    }
}

fn shown(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Name(name) if text.is_empty() => text.push_str(name),
            Step::Name(name) => {
                text.push('.');
                text.push_str(name);
            }
            Step::Index(at) => {
                text.push('[');
                text.push_str(&at.to_string());
                text.push(']');
            }
        }
    }
    text
}

fn uses(part: Part<'_>) -> Vec<Use> {
    let mut walk = Walk::default();
    // It was parsed before.
    if let Ok(parsed) = parse(part.source, "template", SyntaxConfig, WhitespaceConfig::default()) {
        walk.statement(&parsed);
    }
    walk.uses
}

#[derive(Default)]
struct Walk<'a> {
    uses: Vec<Use>,
    /// The variables of the loops around.
    scope: Vec<&'a str>,
}

impl<'a> Walk<'a> {
    fn statements(&mut self, statements: &[Stmt<'a>]) {
        for statement in statements {
            self.statement(statement);
        }
    }

    fn statement(&mut self, statement: &Stmt<'a>) {
        match statement {
            Stmt::Template(template) => self.statements(&template.children),
            Stmt::EmitExpr(emit) => self.expression(&emit.expr, false),
            Stmt::ForLoop(each) => {
                self.expression(&each.iter, false);
                let outer = self.scope.len();
                self.targets(&each.target);
                self.scope.push(LOOP);
                if let Some(filter) = &each.filter_expr {
                    self.expression(filter, true);
                }
                self.statements(&each.body);
                self.scope.truncate(outer);
                self.statements(&each.else_body);
            }
            Stmt::IfCond(condition) => {
                self.expression(&condition.expr, true);
                self.statements(&condition.true_body);
                self.statements(&condition.false_body);
            }
            // Others are not allowed.
            _ => {}
        }
    }

    fn targets(&mut self, target: &Expr<'a>) {
        match target {
            Expr::Var(variable) => self.scope.push(variable.id),
            Expr::List(list) => list.items.iter().for_each(|item| self.targets(item)),
            _ => {}
        }
    }

    fn expression(&mut self, expression: &Expr<'a>, is_asked: bool) {
        if let Some((path, span)) = path(expression) {
            let is_of_loop = matches!(path.first(), Some(Step::Name(root)) if self.scope.contains(&root.as_str()));
            let line = usize::from(span.start_line).max(1);
            self.uses.push(Use { path, line, is_of_loop, is_asked });
            return;
        }
        match expression {
            Expr::UnaryOp(of) => self.expression(&of.expr, is_asked),
            Expr::BinOp(of) => {
                self.expression(&of.left, is_asked);
                self.expression(&of.right, is_asked);
            }
            Expr::Compare(of) => {
                self.expression(&of.expr, is_asked);
                of.ops.iter().for_each(|op| self.expression(&op.expr, is_asked));
            }
            Expr::IfExpr(of) => {
                self.expression(&of.test_expr, true);
                self.expression(&of.true_expr, is_asked);
                of.false_expr.iter().for_each(|expr| self.expression(expr, is_asked));
            }
            Expr::GetAttr(of) => self.expression(&of.expr, false),
            Expr::GetItem(of) => {
                self.expression(&of.expr, false);
                self.expression(&of.subscript_expr, false);
            }
            Expr::Filter(of) => {
                let has_default = of.name == "default";
                of.expr.iter().for_each(|expr| self.expression(expr, is_asked || has_default));
                self.arguments(&of.args);
            }
            Expr::Test(of) => {
                self.expression(&of.expr, true);
                self.arguments(&of.args);
            }
            _ => {}
        }
    }

    fn arguments(&mut self, arguments: &[CallArg<'a>]) {
        for argument in arguments {
            if let CallArg::Pos(expr) | CallArg::Kwarg(_, expr) = argument {
                self.expression(expr, false);
            }
        }
    }
}

/// The path that an expression is, when it is one, and where it begins.
fn path(expression: &Expr<'_>) -> Option<(Vec<Step>, Span)> {
    match expression {
        Expr::Var(variable) => Some((vec![Step::Name(variable.id.to_owned())], variable.span())),
        Expr::GetAttr(of) => {
            let (mut path, span) = path(&of.expr)?;
            path.push(Step::Name(of.name.to_owned()));
            Some((path, span))
        }
        Expr::GetItem(of) => {
            let (mut path, span) = path(&of.expr)?;
            let Expr::Const(subscript) = &of.subscript_expr else { return None };
            let step = match subscript.value.as_str() {
                Some(name) => Step::Name(name.to_owned()),
                None => Step::Index(i64::try_from(subscript.value.clone()).ok()?),
            };
            path.push(step);
            Some((path, span))
        }
        _ => None,
    }
}
