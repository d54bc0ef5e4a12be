//! `facade operator token …`

use std::time::Duration;

use clap::Subcommand;

use super::CliError;
use super::client::{Client, encode};
use super::device::parse_ttl;
use super::output::{Output, table};
use crate::api::types::{NewOperatorToken, OperatorToken, OperatorTokenRequest};

const PATH: &str = "/api/v1/operator-tokens";

/// Verbs on who may use the facade.
#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    /// Make, list and revoke operators' tokens
    #[command(subcommand)]
    Token(Token),
}

#[derive(Subcommand, Debug)]
pub(super) enum Token {
    /// Make a token; it is shown only now
    Create {
        /// Its name, for the audit log and for revoking
        name: String,
        /// What it allows
        #[arg(long, value_parser = ["admin", "operator", "viewer", "pusher"])]
        role: String,
        /// How long it is valid
        #[arg(long, default_value = "90d", value_parser = parse_ttl)]
        ttl: Duration,
    },
    /// List the tokens, and when each was last used
    List,
    /// Revoke a token: it opens nothing from then on
    Revoke {
        /// Its name
        name: String,
    },
}

impl Verb {
    pub(super) async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        let Self::Token(verb) = self;
        match verb {
            Token::Create { name, role, ttl } => {
                let request = OperatorTokenRequest {
                    name,
                    role,
                    ttl_seconds: ttl.as_secs(),
                };
                let token: NewOperatorToken = client.post(PATH, &request).await?;
                output.result(&token, |token| token.token.clone());
                output.note(&format!("valid until {}; shown only now", token.expires_at));
            }
            Token::List => {
                let tokens: Vec<OperatorToken> = client.all(PATH).await?;
                output.result(&tokens, |tokens| list(tokens));
            }
            Token::Revoke { name } => {
                let path = format!("{PATH}/{}", encode(&name));
                let token: OperatorToken = client.delete(&path).await?;
                output.result(&token, |token| format!("revoked token {}", token.name));
            }
        }
        Ok(())
    }
}

fn list(tokens: &[OperatorToken]) -> String {
    let rows = tokens.iter().map(|token| {
        [
            token.name.clone(),
            token.role.clone(),
            token.created_by.clone(),
            token.expires_at.clone().unwrap_or_else(|| "never".to_owned()),
            token.last_used_at.clone().unwrap_or_else(|| "never".to_owned()),
        ]
    });
    table(["name", "role", "made by", "expires", "last used"], rows)
}
