"""HTTP: routes, schemas, request bodies, middleware and the OpenAPI document."""
