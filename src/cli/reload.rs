//! `wxgate reload`: has a running wxgate load its configuration again, by its admin API.

use reqwest::Method;

use super::{
    CommandError,
    admin_client::{AdminArguments, AdminClient},
    background_runtime,
    token::show,
};

pub(super) fn run(arguments: &AdminArguments) -> Result<(), CommandError> {
    let admin = AdminClient::new(arguments)?;
    background_runtime()?
        .block_on(async { show(&admin.call(Method::POST, "/api/reload", None).await?) })
}
