// The page leaves out the parts that it has nothing for.
if (at("tables")) startTables();
if (at("published")) startPublished();
if (at("viewer")) startViewer();
if (at("differences")) startDifferences();
if (at("bands")) startBands();
if (at("costs")) startCosts();
startCurves();
})();
