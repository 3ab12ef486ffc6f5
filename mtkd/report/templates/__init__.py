"""Parts of the report page: its HTML (jinja2), style and script, put together by `mtkd.report.page`."""
