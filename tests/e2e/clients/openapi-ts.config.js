// [Task]: T100 [From]: specs/requirements.md
export default {
  output: { path: "client", module: { extension: ".js" } },
  plugins: ["@hey-api/client-fetch", "@hey-api/typescript", { name: "@hey-api/sdk", validator: true }, "zod"],
};
