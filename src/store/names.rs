//! What people call by name, by its number.

use super::{
    Store, StoreError,
    sql::{Value, args},
};
use crate::model::{LocationId, RouteId, SiteId};

impl Store {
    /// The location `SITE/NAME`.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or the database is away.
    pub async fn location_id(&self, place: &str) -> Result<LocationId, StoreError> {
        let (site, name) = place.split_once('/').unwrap_or((place, ""));
        let text = "SELECT l.id FROM data_location l JOIN site s ON s.id = l.site_id
            WHERE s.short_name = $1 AND l.name = $2";
        self.number("location", place, text, args![site, name]).await.map(LocationId::new)
    }

    /// The route of this name.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or the database is away.
    pub async fn route_id(&self, name: &str) -> Result<RouteId, StoreError> {
        let text = "SELECT id FROM data_transfer_route WHERE name = $1 ORDER BY active DESC, id DESC LIMIT 1";
        self.number("route", name, text, args![name]).await.map(RouteId::new)
    }

    /// The site of this short name.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or the database is away.
    pub async fn site_id(&self, short_name: &str) -> Result<SiteId, StoreError> {
        let text = "SELECT id FROM site WHERE short_name = $1";
        self.number("site", short_name, text, args![short_name]).await.map(SiteId::new)
    }

    async fn number(
        &self,
        what: &'static str,
        name: &str,
        text: &'static str,
        args: &[Value],
    ) -> Result<i64, StoreError> {
        let row = self.read().await?.row(text, args).await?;
        row.ok_or_else(|| StoreError::NotFound { what, name: name.to_owned() })?.int("id")
    }
}
