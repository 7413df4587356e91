"""The documentation page, from this server's own files alone."""

from __future__ import annotations

import re

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

from service.security_headers import policy_of_page

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs() -> HTMLResponse:
    """Swagger UI."""
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="pared",
        swagger_js_url="/static/swagger-ui/swagger-ui-bundle.js",
        swagger_css_url="/static/swagger-ui/swagger-ui.css",
        swagger_favicon_url="/static/swagger-ui/favicon-32x32.png",
        # Without this the page asks a server of Swagger's to validate the description.
        swagger_ui_parameters={"validatorUrl": None},
    )
    scripts = re.findall(r"<script>(.*?)</script>", bytes(page.body).decode(), re.DOTALL)
    page.headers["Content-Security-Policy"] = policy_of_page(*scripts)
    return page
