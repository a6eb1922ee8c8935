"""``report.html``: what a build measured and estimated, as one page that opens offline."""

from stars_deploy.page.content import PageContent, Raster
from stars_deploy.page.rendering import render, write_page

__all__ = ["PageContent", "Raster", "render", "write_page"]
