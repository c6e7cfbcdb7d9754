"""What all doors share: the gunicorn worker, requests in, replies out, the OpenAPI document."""
