"""HTML pages: Jinja2 templates with autoescape, one stylesheet, charts as inline SVG; independent of their content."""
