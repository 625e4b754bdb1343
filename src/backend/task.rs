//! `IRTask`: a task as a runner describes it.
//!
//! The field names are those of a runner's JSON (cuenv's IR); fields that we do not know are
//! ignored, and all but `id` may be missing, so a task loads as it is.

use super::CachePolicy;
use crate::engine::OutputDeclaration;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A task. Larder itself uses `id` in messages and `outputs`; the digest that a runner passes along
/// with a task stands for everything else.
///
/// # Examples
/// ```
/// use larder::{IRTask, OutputDeclaration};
/// let mut task = IRTask::new("build").with_command(["cargo", "build"]);
/// task.outputs.push(OutputDeclaration::new("target/debug/app"));
/// assert_eq!(task.command.len(), 2);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(default)]
pub struct IRTask {
    /// Unique name of the task.
    pub id: String,
    /// The environment it runs in.
    pub runtime: Option<String>,
    /// The command: a program and its arguments.
    pub command: Vec<String>,
    /// Whether the command is a script for a shell.
    pub shell: bool,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// Secrets, by the names of the variables that will hold them; never their values.
    pub secrets: BTreeMap<String, SecretSource>,
    /// What the task needs to run.
    pub resources: Option<ResourceRequirements>,
    /// Tasks of one group do not run at once.
    pub concurrency_group: Option<String>,
    /// Paths and patterns of what it reads.
    pub inputs: Vec<String>,
    /// What it writes.
    pub outputs: Vec<OutputDeclaration>,
    /// Tasks that must have run.
    pub depends_on: Vec<String>,
    /// What it may do with the cache.
    pub cache_policy: CachePolicy,
    /// Whether it deploys something, so that it must never be answered from a cache.
    pub deployment: bool,
    /// Whether a person has to say yes.
    pub manual_approval: bool,
    /// Parameters of the task.
    pub params: BTreeMap<String, String>,
}

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(default)]
pub struct SecretSource {
    /// A reference for the runner.
    pub source: String,
    /// Whether the secret's value is part of the task's digest.
    pub cache_key: bool,
}

/// What a task needs to run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(default)]
pub struct ResourceRequirements {
    /// Processors, as the runner writes them.
    pub cpu: Option<String>,
    /// Memory, as the runner writes it.
    pub memory: Option<String>,
    /// Labels of machines that may run it.
    pub tags: Vec<String>,
}

impl IRTask {
    /// A task of which only the name is known.
    pub fn new(id: impl Into<String>) -> IRTask {
        IRTask { id: id.into(), ..IRTask::default() }
    }

    /// Sets the command.
    #[must_use]
    pub fn with_command<S: Into<String>>(mut self, command: impl IntoIterator<Item = S>) -> IRTask {
        self.command = command.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the outputs.
    #[must_use]
    pub fn with_outputs(mut self, outputs: impl IntoIterator<Item = OutputDeclaration>) -> IRTask {
        self.outputs = outputs.into_iter().collect();
        self
    }

    /// What the task may do with the cache: its own policy, and nothing if it deploys.
    pub fn effective_policy(&self) -> CachePolicy {
        if self.deployment { CachePolicy::Disabled } else { self.cache_policy }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::OutputKind;

    #[test]
    fn a_runners_task_loads_as_it_is() -> Result<(), serde_json::Error> {
        use OutputKind::{Any, Directory, Orchestrator};
        let json = r#"{
            "id": "build", "runtime": "nix-1", "command": ["cargo", "build"], "shell": false,
            "env": {"A": "1"}, "secrets": {"TOKEN": {"source": "vault/x", "cache_key": true, "more": 1}},
            "resources": {"cpu": "2", "memory": "2Gi", "gpu": 1}, "concurrency_group": "prod",
            "inputs": ["src/**"], "depends_on": ["fetch"], "cache_policy": "readonly",
            "outputs": [{"path": "target", "type": "cas"}, {"path": "log", "type": "orchestrator"},
                        {"path": "dist", "type": "directory"}, {"path": "x", "type": "new-kind"}, {"path": "y"}],
            "deployment": false, "manual_approval": false, "matrix": {"dimensions": {}}, "something_new": []
        }"#;
        let task: IRTask = serde_json::from_str(json)?;
        let kinds: Vec<OutputKind> = task.outputs.iter().map(|output| output.kind).collect();
        assert_eq!(kinds, [Any, Orchestrator, Directory, Any, Any]);
        assert_eq!(task.cache_policy, CachePolicy::Readonly);
        assert_eq!(task.secrets["TOKEN"].source, "vault/x");
        let again: IRTask = serde_json::from_str(&serde_json::to_string(&task)?)?;
        assert_eq!(again, task);
        Ok(())
    }

    #[test]
    fn a_deployment_is_never_cached() {
        let mut task = IRTask::new("deploy");
        assert_eq!(task.effective_policy(), CachePolicy::Normal);
        task.deployment = true;
        assert_eq!(task.effective_policy(), CachePolicy::Disabled);
    }
}
