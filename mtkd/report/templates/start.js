startTables();
startPublished();
startViewer();
startDifferences();
startBands();
startCosts();
startCurves();
})();
