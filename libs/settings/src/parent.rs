//! The flag that has a long-running program end with the process that started it.

use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use tether_kit::parent::{Error, Parent, ParentDeath};

/// What every long-running program is asked of its parent.
#[derive(Debug, Args)]
pub struct ParentFlag {
    /// What the end of the process that started this one means: `terminate` is for supervisord and runit, which
    /// leave what they run behind when they are killed.
    #[arg(
        long,
        value_name = "MEANING",
        env = "TETHER_PARENT_DEATH",
        default_value = "ignore",
        value_parser = meanings()
    )]
    parent_death: ParentDeath,
}

impl ParentFlag {
    /// Opens the parent where its end is to mean something, to be done first of all.
    ///
    /// # Errors
    /// When it has ended already, or cannot be watched.
    pub fn open(&self) -> Result<Option<Parent>, Error> {
        match self.parent_death {
            ParentDeath::Ignore => Ok(None),
            ParentDeath::Terminate => Parent::open().map(Some),
        }
    }
}

fn meanings() -> impl TypedValueParser<Value = ParentDeath> {
    let names = ParentDeath::ALL.iter().map(|(name, _)| *name);
    PossibleValuesParser::new(names).map(|name| ParentDeath::named(&name).unwrap_or_default())
}
