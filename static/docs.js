// Swagger UI over the service's own description.
"use strict";

SwaggerUIBundle({
  domNode: document.getElementById("swagger-ui"),
  url: document.getElementById("swagger-ui").dataset.url,
  deepLinking: true,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  // Another host's opinion of the document is not asked for.
  validatorUrl: null,
});
