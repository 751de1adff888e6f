// With a worker ReDoc would make its search by eval, which the page's policy forbids; without one it searches as well.
"use strict";

window.Worker = undefined;
